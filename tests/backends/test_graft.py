"""A module whose code cannot be written at the new sizes keeps its class and place, and runs the graph's code."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 (users pickle modules)
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import coppice
from coppice import CoppiceError, Subnet
from zoo import MODELS


class Attention(nn.Module):
    """The width of the heads' result is taken from the input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None, flag: bool = False) -> dict[str, Any]:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / 2
        if bias is not None:
            scores = scores + bias
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, dim)
        return {"y": self.out(y), "flag": flag, "cache": None}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(5, 12), Attention(12, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor, bias: Tensor | None = None, flag: bool = False) -> Tensor:
        h = self.embed(x)
        result = self.attention(h, bias=bias, flag=flag)
        y: Tensor = self.head(h + result["y"])
        return y


def cut(**inputs: Any) -> Subnet:
    torch.manual_seed(0)
    model = Model().eval()
    space = coppice.build_space(coppice.trace(model, {"x": torch.randn(2, 7, 5), **inputs}))
    return coppice.extract(space, space.uniform(0.5))


def agree(subnet: Subnet, module: nn.Module, **inputs: Tensor) -> None:
    wide = {name: x.double() for name, x in inputs.items()}
    with torch.no_grad():
        small, reference = copy.deepcopy(module).double()(**wide), subnet.reference().double()(**wide)
    assert torch.allclose(small, reference, rtol=0, atol=1e-12)


def test_only_the_module_that_needs_it_is_rewritten() -> None:
    subnet = cut()
    assert isinstance(subnet.module, Model)
    assert isinstance(subnet.module.attention, Attention)
    assert subnet.receipt["module"]["rewritten"] == ["attention"]
    assert "does not run at the new sizes" in subnet.receipt["module"]["why"]
    names = {name for name, _ in Model().named_parameters()}
    assert {name for name, _ in subnet.module.named_parameters()} == names
    for batch in (1, 4):
        agree(subnet, subnet.module, x=torch.randn(batch, 7, 5))


def test_arguments_are_told_apart_by_what_they_hold() -> None:
    bias = torch.randn(3, 7, 7)[:1]
    subnet = cut(bias=bias)
    assert subnet.receipt["module"]["rewritten"] == ["attention"]
    agree(subnet, subnet.module, x=torch.randn(3, 7, 5), bias=torch.randn_like(bias))


@pytest.mark.parametrize("change", [{"flag": True}, {"bias": torch.zeros(1, 7, 7)}])
def test_a_call_with_other_arguments_is_refused(change: dict[str, Any]) -> None:
    """A cache that would be ignored gives wrong results without an error."""
    subnet = cut()
    with pytest.raises(CoppiceError, match="rewritten for the arguments of the example") as caught:
        subnet.module(torch.randn(2, 7, 5), **change)
    assert caught.value.exit_code == 3


def test_it_trains_copies_and_pickles() -> None:
    subnet = cut()
    x = torch.randn(2, 7, 5)
    before = subnet.module(x)
    torch.autograd.backward(before.square().mean())
    assert all(p.grad is not None for p in subnet.module.parameters())
    with torch.no_grad():
        for parameter in subnet.module.get_submodule("attention").parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(subnet.module(x), before), "the rewritten forward reads the module's own parameters"
    for twin in (copy.deepcopy(subnet.module), pickle.loads(pickle.dumps(subnet.module))):  # noqa: S301 (made here)
        assert torch.equal(twin(x), subnet.module(x))
        with torch.no_grad():
            twin.get_parameter("attention.out.weight").zero_()
        assert not torch.equal(twin(x), subnet.module(x)), "a copy reads its own"
    agree(subnet, subnet.module, x=x)


@pytest.mark.parametrize("name", ["vit", "vit_sdpa", "vit_mha", "bert", "llama", "llama_tied", "shufflenet_v2"])
def test_families_keep_their_class_at_random_widths(name: str) -> None:
    case = MODELS[name]
    model = case.build()
    space = coppice.build_space(coppice.trace(model, case.inputs(2)))
    for seed in range(2):
        subnet = coppice.extract(space, space.random(seed))
        assert type(subnet.module) is type(model), subnet.receipt["module"]


def test_where_the_root_itself_would_have_to_be_rewritten_the_graph_is_taken() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.c(torch.cat([self.a(x), self.b(x)], -1).view(-1, 16).relu())
            return y

    space = coppice.build_space(coppice.trace(Flat(), torch.randn(2, 5)))
    receipt = coppice.extract(space, space.uniform(0.5)).receipt
    assert receipt["module"]["kind"] == "graph"
    assert receipt["module"]["why"].startswith("Flat does not run at the new sizes")
