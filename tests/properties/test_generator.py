"""The properties are not vacuous: random networks have much to cut, and the check refuses a wrong subnet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import coppice
from properties.networks import Example, networks
from properties.reference import gap, masked

EXACT = 1e-9


def space_of(example: Example) -> coppice.Space:
    return coppice.build_space(coppice.trace(example.network, example.inputs()))


def test_the_generator_reaches_what_it_should() -> None:
    """Most random networks have something to cut: the properties above are not vacuous."""
    cut: list[int] = []

    @settings(max_examples=40, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(networks())
    def draw(example: Example) -> None:
        cut.append(len(space_of(example).families))

    draw()
    assert sum(count > 0 for count in cut) >= 0.5 * len(cut)
    assert max(cut) >= 4


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
