"""The properties are not vacuous: random networks have much to cut, and the check refuses a wrong subnet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import coppice
from properties.dice import Dice
from properties.layers import LAYERS, Layer, Shape, fits
from properties.networks import Example, networks
from properties.reference import gap, masked

EXACT = 1e-9
T = TypeVar("T")


def space_of(example: Example) -> coppice.Space:
    return coppice.build_space(coppice.trace(example.network, example.inputs()))


def test_the_generator_reaches_what_it_should() -> None:
    """Most random networks have something to cut: the properties above are not vacuous."""
    cut: list[int] = []

    @settings(max_examples=30, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(networks())
    def draw(example: Example) -> None:
        cut.append(len(space_of(example).families))

    draw()
    assert sum(count > 0 for count in cut) >= 0.5 * len(cut)
    assert max(cut) >= 4


class Sure(Dice):
    """Takes the ``turn``-th option every time."""

    def __init__(self, turn: int) -> None:
        self.turn = turn

    def pick(self, options: Sequence[T]) -> T:
        return options[self.turn % len(options)]

    def flag(self) -> bool:
        return bool(self.turn % 2)

    def number(self, low: int, high: int) -> int:
        return low + self.turn % (high - low + 1)


SHAPES: dict[int, Shape] = {4: (2, 8, 4, 4), 3: (2, 4, 8), 2: (2, 8)}
DRAWN = [(rank, layer) for rank, layers in LAYERS.items() for layer in dict.fromkeys(layers)]


@pytest.mark.parametrize(("rank", "layer"), DRAWN, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_layer_runs_in_all_its_forms(rank: int, layer: Layer) -> None:
    shape = SHAPES[rank]
    assert fits(layer, shape)
    for turn in range(12):
        made = layer(Sure(turn), shape).eval()(torch.randn(shape))
        for value in made if isinstance(made, tuple) else (made,):
            assert value.ndim in LAYERS
            assert value.shape[0] == shape[0]


WANTED = (
    "Einsum", "Picked", "Conv1d", "Conv3d", "Stream", "Rotary", "Tokens", "Twice", "Recurrent", "RMS", "LayerNorm",
    "BatchNorm2d", "ConvTranspose2d", "Attention", "SqueezeExcite", "Tied", "Apply(sigmoid)", "Apply(softplus)",
    "Apply(nested cat)", "Apply(cat ", "Apply(unshuffle", "Apply(flip", "Apply(roll",
)  # fmt: skip
"""Each comes ten times and more in the networks drawn below."""


def test_the_generator_reaches_every_kind_of_layer() -> None:
    seen: set[str] = set()

    @settings(max_examples=500, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(networks())
    def draw(example: Example) -> None:
        text = repr(example)
        seen.update(name for name in WANTED if name in text)

    draw()
    assert set(WANTED) - seen == set()


def test_the_check_can_fail() -> None:
    """A subnet cut at the wrong positions is refused."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    space = coppice.build_space(coppice.trace(net, torch.randn(2, 4)))
    config = space.uniform(0.5)
    right = coppice.extract(space, config)
    with torch.no_grad():
        next(iter(right.graph.tensors.values())).add_(0.1)
    x = torch.randn(2, 4)
    with pytest.raises(AssertionError):
        assert gap(masked(net.float(), space, config)(x.double()), right.graph.run(x)) <= EXACT
