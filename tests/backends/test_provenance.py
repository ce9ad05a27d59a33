"""What a module's attributes are used for is seen in one run, and the cut's sizes say what they must become."""

from __future__ import annotations

import copy
import json
import math
import pickle  # noqa: TID251 (users pickle modules)
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import coppice
from coppice.backends.module.provenance import Tracked, Width, observe, solve, width
from coppice.core.extraction import Sizes

X = torch.randn(2, 6, 8)


class Config:
    """As transformers' configs: plain attributes, shared by all modules."""

    def __init__(self) -> None:
        self.heads, self.name, self.flag = 4, "four", True


class Heads(nn.Module):
    """Attention whose sizes stand in attributes, in one of several ways."""

    def __init__(self, style: str = "attributes") -> None:
        super().__init__()
        self.style, self.config = style, Config()
        self.heads, self.depth, self.inner = 4, 3, 12
        self.sizes = [12, 12, 12] if style == "list" else (12, 12, 12)
        self.qkv, self.out = nn.Linear(8, 36), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        if self.style in ("list", "tuple"):
            q, k, v = qkv.split(self.sizes, -1)
        elif self.style == "slices":
            q, k, v = qkv[..., : self.inner], qkv[..., self.inner : 2 * self.inner], qkv[..., 2 * self.inner :]
        else:
            q, k, v = qkv.split(self.heads * self.depth, dim=-1)
        heads = self.config.heads if self.style == "config" else self.heads
        shape = (*x.shape[:2], heads, -1 if self.style == "inferred" else self.depth)
        q, k, v = (torch.reshape(y, shape).transpose(1, 2) for y in (q, k, v))
        scale = self.depth**-0.5 if self.style == "power" else 1 / math.sqrt(self.depth)
        y = (q @ k.transpose(-1, -2) * scale).softmax(-1) @ v
        z: Tensor = self.out(y.transpose(1, 2).reshape(*x.shape[:2], self.inner))
        return z


STYLES = ["attributes", "list", "tuple", "slices", "config", "inferred", "power"]


@pytest.mark.parametrize("style", STYLES)
def test_attributes_become_what_their_uses_need(style: str) -> None:
    torch.manual_seed(0)
    model = Heads(style).eval()
    before = copy.deepcopy(vars(model))
    space = coppice.build_space(coppice.trace(model, X))
    subnet = coppice.extract(space, space.uniform(0.5))
    module = subnet.module
    assert isinstance(module, Heads)
    assert subnet.receipt["module"]["rewritten"] == [], "repaired, not rewritten"
    heads = module.config.heads if style == "config" else module.heads
    assert heads == 2
    assert module.inner == module.out.in_features
    with torch.no_grad():
        wide, reference = copy.deepcopy(module).double(), subnet.reference().double()
        assert torch.allclose(wide(X.double()), reference(X.double()), rtol=0, atol=1e-12)
    assert {k: v for k, v in vars(model).items() if isinstance(v, int)} == {
        k: v for k, v in before.items() if isinstance(v, int)
    }
    assert type(model.heads) is int
    assert (model.config.name, model.config.flag) == ("four", True)


def test_an_attribute_that_states_a_size_and_a_scale_gives_both() -> None:
    model = Heads().eval()
    space = coppice.build_space(coppice.trace(model, X))
    subnet = coppice.extract(space, space.with_widths({f.name: 2 for f in space.families if f.size == 3}))
    assert isinstance(subnet.module, Heads)
    depth = subnet.module.depth
    assert (int(depth), depth * 2, float(depth), depth**-0.5, math.sqrt(depth)) == (2, 4, 3.0, 3**-0.5, 3**0.5)
    assert isinstance(depth, Width)
    for again in (copy.deepcopy(depth), pickle.loads(pickle.dumps(depth))):  # noqa: S301 (made here)
        assert (int(again), float(again)) == (2, 3.0)
    assert json.dumps(width(2, 3)) == "2"


def test_arithmetic_keeps_track() -> None:
    scales: set[Any] = set()
    a, b = (Tracked.of(value, ("", name, None), scales) for name, value in (("a", 12), ("b", 4)))
    for made, expected in (
        (a * b, 48), (a // b, 3), (a + b, 16), (a - b, 8), (2 * a, 24), (24 // b, 6), (1 + a, 13), (20 - a, 8),
        (-a, -12),
    ):  # fmt: skip
        assert isinstance(made, Tracked)
        assert int(made) == expected
    ratio = (2 * a) // b - 1
    assert ratio.compute({("", "a", None): 20, ("", "b", None): 5}) == 7
    assert not scales
    assert (a / b, math.sqrt(b), b**0.5, b**2) == (3.0, 2.0, 2.0, 16)
    assert scales == {("", "a", None), ("", "b", None)}


def sizes(old: tuple[int | None, ...], new: tuple[int | None, ...]) -> Sizes:
    return Sizes(("",), "size", old, new, old != new)


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = 4, 2

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, self.a, self.b).transpose(1, 2).reshape(-1, self.a * self.b)


def test_equations_are_solved_one_unknown_at_a_time() -> None:
    found = observe(Views(), (torch.randn(3, 8),), {})
    assert [use.numbers for use in found.uses[""]] == [(-1, 4, 2), (-1, 8)]
    places = {name: ("", name, None) for name in "ab"}
    assert solve(found, [sizes((None, 4, 2), (None, 3, 2))]) == {places["a"]: 3}
    assert solve(found, [sizes((-1, 8), (-1, 6))]) == {}, "two unknowns in one equation"
    assert solve(found, [sizes((None, 4, 2), (None, 4, 1)), sizes((-1, 8), (-1, 4))]) == {places["b"]: 1}
    assert solve(found, [sizes((None, 5, 2), (None, 3, 2))]) == {}, "no call has these numbers"


def test_a_model_that_minds_its_integers_is_left_alone() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out, self.size = nn.Linear(8, 6), nn.Linear(6, 3), 6

        def forward(self, x: Tensor) -> Tensor:
            if type(self.size) is not int:
                raise TypeError("an int, please")
            y: Tensor = self.out(self.first(x).relu())
            return y

    space = coppice.build_space(coppice.trace(Picky(), X))
    assert coppice.extract(space, space.uniform(0.5)).receipt["module"]["kind"] == "user"
