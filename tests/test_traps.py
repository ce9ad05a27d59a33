"""Networks built to make a careless tool go wrong: never a wrong subnet, and a reason for every refusal."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import coppice
from zoo import TRAPS


@pytest.mark.parametrize("name", sorted(TRAPS))
def test_no_trap_gives_a_wrong_subnet(name: str) -> None:
    case = TRAPS[name]
    model = case.build()
    space = coppice.build_space(coppice.trace(model, case.inputs(2)))
    cut = {(s.tensor, s.axis) for family in space.families for s in family.slices}
    canonical = space.graph.canonical
    for parameter in case.names(model, "expect"):
        reasons = [str(entry) for entry in space.frozen if entry.axis.startswith(f"{canonical(parameter)}[")]
        assert (canonical(parameter), case.axis(parameter)) in cut, reasons
    for parameter in (*case.names(model, "expect_frozen"), *case.names(model, "later")):
        assert (canonical(parameter), case.axis(parameter)) not in cut, parameter
    for config in (space.uniform(0.5), space.random(0), space.random(1)):
        assert coppice.extract(space, config).receipt["equivalence"]["error"] <= 1e-9


class Between(nn.Module):
    """conv1 -> ``op`` -> conv2."""

    def __init__(self, op: nn.Module, width: int = 8, after: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.op = op
        self.conv2 = nn.Conv2d(after or width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.op(self.conv1(x)))
        return y


class Do(nn.Module):
    """A lambda as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        match self.name:
            case "plus":
                return x + 0.3
            case "mean":
                return x - x.mean(1, keepdim=True)
            case "flip":
                return x.flip(1)
            case "roll":
                return x.roll(1, 1)
            case "chunk":
                a, b = x.chunk(2, 1)
                return torch.cat([b, a * 2], 1)
        return x.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


FROZEN = {
    "sigmoid": (nn.Sigmoid(), "the constant 0.5"),
    "softplus": (nn.Softplus(), "the constant 0.6931"),
    "plus constant": (Do("plus"), "the constant 0.3"),
    "channel softmax": (Do("softmax"), "compared with the others"),
    "channel mean taken off": (Do("mean"), "a value that depends on the other units"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_a_unit_that_does_not_arrive_as_zero_is_frozen_with_its_line(name: str) -> None:
    op, fact = FROZEN[name]
    torch.manual_seed(0)
    model = Between(op).eval()
    space = coppice.build_space(coppice.trace(model, torch.randn(2, 3, 6, 6)))
    assert space.families == ()
    entry = next(e for e in space.frozen if e.axis == "conv1.weight[out]")
    assert fact in entry.reason
    assert entry.source.startswith("test_traps.py:")
    assert naive_gap(model) > 1e-3, "cutting conv1's channels here really changes the result"


@pytest.mark.parametrize("residual", ["exact", "renormalise"])
def test_a_norm_over_channels_counts_as_it_is_told(residual: str) -> None:
    torch.manual_seed(0)
    model = Between(Norm()).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    space = coppice.build_space(coppice.trace(model, x), residual=residual)
    subnet = coppice.extract(space, space.with_widths({"conv1": 5}))
    assert isinstance(subnet.module, Between)
    with torch.no_grad():
        masked = copy.deepcopy(model)
        for name, masks in space.zero_masks(space.with_widths({"conv1": 5})).items():
            if masks[0] is not None:
                masked.get_parameter(name)[torch.from_numpy(masks[0])] = 0
        assert torch.allclose(subnet.module(x), subnet.reference()(x), rtol=0, atol=1e-12)
        assert torch.allclose(subnet.module(x), masked(x), rtol=0, atol=1e-12) == (residual == "exact")
    assert naive_gap(model) > 1e-3, "to average over fewer channels really changes the result"
    frozen = coppice.build_space(space.graph, residual="freeze")
    assert not frozen.families
    assert "averaged over" in next(e.reason for e in frozen.frozen if e.axis == "conv1.weight[out]")


MOVED = {"flip": Do("flip"), "roll": Do("roll"), "chunk": Do("chunk")}


@pytest.mark.parametrize("name", MOVED)
def test_a_unit_that_moves_is_followed(name: str) -> None:
    torch.manual_seed(0)
    model = Between(MOVED[name]).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    space = coppice.build_space(coppice.trace(model, x))
    for seed in range(4):
        subnet = coppice.extract(space, space.random(seed))
        assert torch.allclose(subnet.module(x), subnet.reference()(x), rtol=0, atol=1e-12)
    assert naive_gap(model) > 1e-3, "keeping the same positions on both sides would be wrong"


def naive_gap(model: Between) -> float:
    """How far off a tool is that cuts conv1's channel 1 and, at the same place, conv2's input."""
    masked, small = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    assert masked.conv1.bias is not None and small.conv1.bias is not None
    keep = [0, *range(2, 8)]
    with torch.no_grad():
        masked.conv1.weight[1] = 0
        masked.conv1.bias[1] = 0
        small.conv1.weight = nn.Parameter(small.conv1.weight[keep])
        small.conv1.bias = nn.Parameter(small.conv1.bias[keep])
        small.conv2.weight = nn.Parameter(small.conv2.weight[:, keep])
        if isinstance(small.op, Norm):
            small.op.norm.weight = nn.Parameter(small.op.norm.weight[keep])
            small.op.norm.bias = nn.Parameter(small.op.norm.bias[keep])
            small.op.norm.normalized_shape = (7,)
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        if isinstance(small.op, Do) and small.op.name == "chunk":
            a, b = small.conv1(x).split([3, 4], 1)  # an uneven split at the middle of what is left
            cut = small.conv2(torch.cat([b, a * 2], 1))
        else:
            cut = small(x)
        return float((masked(x) - cut).abs().max())
