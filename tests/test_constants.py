"""Constants that removed units leave behind go into the next layer's bias, or hold the units with a reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coppice
from coppice import Space

ACTIVATIONS: dict[str, nn.Module] = {
    "sigmoid": nn.Sigmoid(),
    "hardsigmoid": nn.Hardsigmoid(),
    "softplus": nn.Softplus(),
    "logsigmoid": nn.LogSigmoid(),
    "centred": nn.Sequential(nn.Sigmoid(), nn.Softplus()),
}


class Plus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 - x


class Maps(nn.Module):
    """conv -> op -> conv, the second one as it is given."""

    def __init__(self, op: nn.Module, **options: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.op = op
        self.conv2 = nn.Conv2d(8, 4, **{"kernel_size": 3, **options})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.op(self.conv1(x)))
        return y


class Vectors(nn.Module):
    """linear -> op -> two linears that both read it."""

    def __init__(self, op: nn.Module, bias: bool = True, shared: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.op = op
        self.left, self.right = nn.Linear(8, 3, bias=bias), nn.Linear(8, 3, bias=bias)
        if shared:
            self.right.bias = self.left.bias

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.op(self.first(x))
        return self.left(y), self.right(y)


def space_of(model: nn.Module, *shape: int) -> tuple[Space, Tensor]:
    x = torch.randn(3, *shape, dtype=next(model.parameters()).dtype)
    return coppice.build_space(coppice.trace(model.eval(), x)), x


def masked(model: nn.Module, space: Space, config: coppice.Config) -> nn.Module:
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, masks in space.zero_masks(config).items():
            for axis, mask in enumerate(masks):
                if mask is not None:
                    result.get_parameter(name).index_fill_(axis, torch.from_numpy(mask.nonzero()[0]), 0.0)
    return result


@pytest.mark.parametrize("name", [*ACTIVATIONS, "plus"])
def test_a_linear_layer_takes_constants_over(name: str) -> None:
    model = Vectors(ACTIVATIONS.get(name, Plus())).double()
    space, x = space_of(model, 5)
    assert [f.name for f in space.families] == ["first"]
    for config in (space.with_widths({"first": 1}), space.random(1)):
        subnet = coppice.extract(space, config)
        assert isinstance(subnet.module, Vectors)
        assert subnet.receipt["folded"] == ["left.bias", "right.bias"]
        with torch.no_grad():
            for got, wanted in zip(subnet.module(x), masked(model, space, config)(x), strict=True):
                assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
        assert not torch.equal(subnet.module.left.bias, model.left.bias)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"kernel_size": 1}, {"padding": "valid", "dilation": 2}])
def test_a_convolution_without_padding_takes_constants_over(options: dict[str, Any]) -> None:
    model = Maps(nn.Softplus(), **options).double()
    space, x = space_of(model, 3, 8, 8)
    config = space.with_widths({"conv1": 3})
    subnet = coppice.extract(space, config)
    with torch.no_grad():
        assert torch.allclose(subnet.module(x), masked(model, space, config)(x), rtol=0, atol=1e-12)


def test_padding_that_repeats_the_border_is_no_padding() -> None:
    model = Maps(nn.Sigmoid(), padding=1, padding_mode="replicate").double()
    space, x = space_of(model, 3, 8, 8)
    config = space.with_widths({"conv1": 3})
    with torch.no_grad():
        assert torch.allclose(coppice.extract(space, config)(x), masked(model, space, config)(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "shape", "fact"),
    [
        (Maps(nn.Sigmoid(), padding=1), (3, 8, 8), "less at the border, which `conv2d_1` pads with zeros"),
        (Maps(nn.Sigmoid(), padding="same"), (3, 8, 8), "less at the border"),
        (Maps(nn.Sigmoid(), bias=False), (3, 8, 8), "has no bias of its own"),
        (Vectors(nn.Sigmoid(), bias=False), (5,), "`linear_1` has no bias of its own"),
        (Vectors(nn.Sigmoid(), shared=True), (5,), "has no bias of its own"),
    ],
)
def test_where_no_bias_can_the_units_stay_with_the_reason(model: nn.Module, shape: tuple[int, ...], fact: str) -> None:
    space, _ = space_of(model, *shape)
    assert not space.families
    reason = next(e.reason for e in space.frozen if e.axis in ("conv1.weight[out]", "first.weight[out]"))
    assert "the constant 0.5" in reason
    assert fact in reason


class Shared(nn.Module):
    """One layer reads two values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.a(x).sigmoid()) + self.head(F.softplus(self.b(x)))
        return y


def test_a_layer_called_twice_has_one_bias_for_two_constants() -> None:
    assert not space_of(Shared(), 5)[0].families


def test_a_gate_at_its_own_zero_needs_no_fold() -> None:
    """0.5 times a zero is a zero."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            z: Tensor = self.head(y * y.sigmoid())
            return z

    space, _ = space_of(Gate(), 5)
    assert [f.name for f in space.families] == ["first"]
    assert coppice.extract(space, space.uniform(0.5)).receipt["folded"] == []


def test_in_single_precision_nothing_is_lost_by_rounding() -> None:
    model = Vectors(nn.Sigmoid())
    space, x = space_of(model, 5)
    subnet = coppice.extract(space, space.uniform(0.5))
    assert subnet.receipt["equivalence"]["error"] < 1e-12
    with torch.no_grad():
        for got, wanted in zip(subnet(x), subnet.reference()(x), strict=True):
            assert torch.allclose(got, wanted, rtol=0, atol=1e-6)
    assert subnet.module.get_buffer("left.bias_low").abs().max() < 1e-7
    wide, reference = copy.deepcopy(subnet.module).double(), subnet.reference().double()
    with torch.no_grad():
        for got, wanted in zip(wide(x.double()), reference(x.double()), strict=True):
            assert torch.allclose(got, wanted, rtol=0, atol=1e-13)


def test_the_reference_follows_a_bias_trained_further() -> None:
    model = Vectors(nn.Softplus()).double()
    space, x = space_of(model, 5)
    subnet = coppice.extract(space, space.uniform(0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(subnet.module.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(sum(y.square().mean() for y in subnet.module(x)))
        optimizer.step()
    with torch.no_grad():
        for got, wanted in zip(subnet(x), subnet.reference()(x), strict=True):
            assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not torch.equal(subnet.reference().get_parameter("left.bias"), model.get_parameter("left.bias"))


def test_saved_and_loaded(tmp_path: Any) -> None:
    space, x = space_of(Vectors(nn.Sigmoid()), 5)
    subnet = coppice.extract(space, space.uniform(0.5))
    loaded = coppice.load(subnet.save(tmp_path / "subnet"))
    with torch.no_grad():
        for got, wanted in zip(loaded(x), subnet(x), strict=True):
            assert torch.allclose(got, wanted, rtol=0, atol=1e-6)


def test_on_meta_tensors_nothing_is_computed() -> None:
    with torch.device("meta"):
        model, x = Vectors(nn.Sigmoid()), torch.empty(3, 5)
    space = coppice.build_space(coppice.trace(model, x))
    subnet = coppice.extract(space, space.uniform(0.5))
    assert subnet.graph.tensors["left.bias"].is_meta
    assert subnet.receipt["folded"] == ["left.bias", "right.bias"]
