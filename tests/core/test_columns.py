"""The matrix that a layer's weight multiplies: columns times weight is what the layer computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coppice import trace
from coppice.core.calls import Call
from coppice.core.graph import Graph
from coppice.core.ops import lookup

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (3, 6)),
    "linear over a sequence": (nn.Linear(6, 5), (3, 7, 6)),
    "conv1d": (nn.Conv1d(3, 5, 4, stride=2, padding=1), (2, 3, 11)),
    "conv2d": (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 8, 7)),
    "strides, gaps and paddings of each axis": (
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 3)),
        (2, 3, 9, 8),
    ),
    "padding same, even window": (nn.Conv2d(3, 4, 4, padding="same", dilation=2), (2, 3, 9, 9)),
    "padding valid": (nn.Conv2d(3, 4, 2, padding="valid", bias=False), (2, 3, 5, 5)),
    "circular padding": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=2), (2, 2, 5, 4, 6)),
}


def layer(module: nn.Module, shape: tuple[int, ...]) -> tuple[Graph, Call, Tensor]:
    x = torch.randn(shape, dtype=torch.float64)
    graph = trace(module.double().eval(), x)
    rows = [node for node in graph.nodes if node.op == "call_function" and "weight" in Call(node).names]
    return graph, Call(rows[-1]), x


@pytest.mark.parametrize(("module", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_columns_times_weight_is_the_result(module: nn.Module, shape: tuple[int, ...]) -> None:
    graph, call, x = layer(module, shape)
    op = lookup(call.target)
    assert op is not None
    assert op.columns is not None
    assert op.columns.refuse(call) is None
    with torch.no_grad():
        values: dict[Any, Any] = graph.values(x)
        result = op.columns.of(call, values[call["input"]]) @ values[call["weight"]].flatten(1).T
        if call["bias"] is not None:
            result += values[call["bias"]]
        channel = op.columns.channel(call)
        expected = values[call.node].movedim(channel, -1).reshape(result.shape)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("module", "shape", "why"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), (2, 4, 5, 5), "grouped"),
        (nn.Conv2d(4, 4, 3), (4, 5, 5), "no batch axis"),
        (nn.Linear(4, 4), (4,), "no batch axis"),
    ],
)
def test_calls_that_are_no_one_matrix_say_so(module: nn.Module, shape: tuple[int, ...], why: str) -> None:
    _, call, _ = layer(module, shape)
    op = lookup(call.target)
    assert op is not None
    assert op.columns is not None
    assert why in str(op.columns.refuse(call))
