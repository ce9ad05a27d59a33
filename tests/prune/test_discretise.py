"""One branch of each choice: by weight, by what its loss would be, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import coppice
from coppice import Space, UnsupportedError, UsageError, build_space, extract, trace
from coppice.passes.prune.discretise import discretise
from zoo import MODELS
from zoo.supernets import Darts, Mixed


@pytest.fixture
def darts() -> tuple[Darts, Space]:
    model = MODELS["darts"].build()
    assert isinstance(model, Darts)
    return model, build_space(trace(model, MODELS["darts"].args(2)[0]))


def kept(space: Space, skip: tuple[str, ...]) -> dict[str, list[int]]:
    """Per choice, the numbers of the branches that are left."""
    live = space.segments.liveness.evaluate(space.segments.erased(skip)[None])[0]
    result = {}
    for choice in space.segments.choices:
        segments = [space.segments.named(name) for name in choice.branches]
        result[choice.name] = [k for k, s in enumerate(segments) if live[space.segments.liveness.nodes[s.operand]]]
    return result


def test_the_largest_alpha_wins_on_every_edge(darts: tuple[Darts, Space]) -> None:
    model, space = darts
    config = discretise(space)
    largest = model.alphas.argmax(1).tolist()
    assert kept(space, config.skip) == {f"cells.{c}.edges.{e}": [largest[e]] for c in (0, 1) for e in range(5)}
    assert extract(space, config).receipt["equivalence"]["error"] <= 1e-9


def test_alphas_trained_since_the_trace_count(darts: tuple[Darts, Space]) -> None:
    model, space = darts
    with torch.no_grad():
        model.alphas.copy_(torch.eye(5))
    assert list(kept(space, discretise(space).skip).values()) == [[k] for k in range(5)] * 2


def test_perturbation_keeps_what_is_missed_most(darts: tuple[Darts, Space]) -> None:
    model, space = darts
    data = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,)))]
    config = discretise(space, "perturbation", data)
    edge = model.get_submodule("cells.1.edges.4")
    assert isinstance(edge, Mixed)
    losses = []
    for k in range(5):
        operator, edge.operators[k] = edge.operators[k], Zero()
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(model(data[0][0]), data[0][1])))
        edge.operators[k] = operator
    assert kept(space, config.skip)["cells.1.edges.4"] == [max(range(5), key=losses.__getitem__)]
    assert extract(space, config).receipt["equivalence"]["error"] <= 1e-9


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_what_cannot_be_chosen_is_said(darts: tuple[Darts, Space]) -> None:
    _, space = darts
    with pytest.raises(UsageError, match="needs calibration"):
        discretise(space, "perturbation")
    with pytest.raises(UsageError, match="no way to discretise is called"):
        discretise(space, "weights")
    plain = MODELS["vgg_bn"]
    with pytest.raises(UsageError, match="no parallel operators"):
        coppice.discretise(build_space(trace(plain.build(), plain.args(2)[0])))
    unweighted = MODELS["super_resnet"]
    with pytest.raises(UnsupportedError, match="not multiplied by one weight"):
        coppice.discretise(build_space(trace(unweighted.build(), unweighted.args(2)[0])))
