"""Networks with ops that nobody has described, some of them hostile: never a wrong subnet."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import coppice
from coppice.core.errors import EquivalenceError
from customops import EVEN_BLIND, MISCHIEF, PAIRS, mischief, pair
from properties.networks import some
from properties.reference import gap, masked
from zoo.case import randomise

EXACT = 1e-9
ROUNDED = 1e-6  # a constant that went into a bias is rounded to fp32 there
SCALES = (1e-3, 1.0, 1e3)


class Strange(nn.Module):
    """linear or conv -> op -> (a second layer and op) -> linear or conv."""

    def __init__(self, ops: list[tuple[str, float]], width: int, image: bool) -> None:
        super().__init__()

        def layer(a: int, b: int) -> nn.Module:
            return nn.Conv2d(a, b, 1) if image else nn.Linear(a, b)

        self.ops = ops
        self.layers = nn.ModuleList([layer(3 if k == 0 else width, width) for k in range(len(ops))])
        self.out = layer(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer, (kind, threshold) in zip(self.layers, self.ops, strict=True):
            x = mischief(layer(x), kind, threshold)
        result: Tensor = self.out(x)
        return result


class Paired(nn.Module):
    """Two linear layers, or one and a parameter or buffer of one number a channel, joined by an op; then a third."""

    def __init__(self, kind: str, other: str, width: int, both: bool) -> None:
        super().__init__()
        self.kind, self.other, self.both = kind, other, both
        self.a, self.b, self.out = nn.Linear(3, width), nn.Linear(3, width), nn.Linear(width, 2)
        self.scale = nn.Parameter(torch.randn(width))
        self.register_buffer("fixed", torch.randn(width).round())

    def forward(self, x: Tensor) -> Tensor:
        other = {"layer": self.b(x), "parameter": self.scale, "buffer": self.fixed}[self.other]
        first, second = pair([self.a(x), other], self.kind)
        result: Tensor = self.out(first * second if self.both else first)
        return result


KINDS = sorted(set(MISCHIEF) - set(EVEN_BLIND))
OPS = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([1e-2, 1.0, 50.0, 1e3, 1e5])), min_size=1, max_size=2)


@some(25)
@given(OPS, st.sampled_from([2, 4, 5, 8, 13]), st.booleans())
@torch.no_grad()
def test_no_custom_op_gives_a_wrong_subnet(ops: list[tuple[str, float]], width: int, image: bool) -> None:
    right(Strange(ops, width, image), (3, 4, 2) if image else (3,))


@some(25)
@given(
    st.sampled_from(sorted(PAIRS)),
    st.sampled_from(["layer", "parameter", "buffer"]),
    st.sampled_from([2, 5, 8]),
    st.booleans(),
)
@torch.no_grad()
def test_no_op_on_two_tensors_gives_a_wrong_subnet(kind: str, other: str, width: int, both: bool) -> None:
    right(Paired(kind, other, width, both), (3,))


def right(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Whatever subnet comes out equals the masked model, on inputs of any size."""
    randomise(model)
    space = coppice.build_space(coppice.trace(model.eval(), torch.randn(2, *shape)))
    for seed in range(2):
        config = space.random(seed)
        try:
            subnet = coppice.extract(space, config)
        except EquivalenceError:
            return
        reference = masked(model, space, config)
        tensors = {n: t.detach().double() for n, t in subnet.graph.tensors.items()}
        for scale in SCALES:
            x = torch.randn(4, *shape, dtype=torch.float64) * scale
            expected = reference(x)
            if bool(expected.isfinite().all()):
                assert gap(expected, subnet.graph.run(x, tensors=tensors)) <= (ROUNDED if space.folds else EXACT)
