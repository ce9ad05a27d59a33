"""Random networks: whatever leaves, the subnet computes what the masked network computes, in fp64."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import coppice
from coppice.core.space import Space
from coppice.core.text import from_text, to_text
from properties.networks import Example, networks
from properties.reference import Watched, gap, masked, parameter_count, single

EXACT = 1e-9
slow = settings(
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def space_of(example: Example) -> Space:
    return coppice.build_space(coppice.trace(example.network, example.inputs()))


@slow
@given(networks(), st.integers(0, 2**16))
def test_a_subnet_equals_its_masked_network(example: Example, seed: int) -> None:
    """At the traced batch size and at another; shapes noted in the graph are those that run; costs are the module's."""
    space = space_of(example)
    for config in (space.random(seed), space.uniform(0.5)):
        subnet = coppice.extract(space, config)
        assert subnet.receipt["equivalence"]["error"] <= EXACT
        reference, module = masked(example.network, space, config), subnet.module.double()
        for batch in (2, 3) if space.graph.batch_dynamic else (2,):
            x = example.inputs(batch).double()
            with torch.no_grad():
                assert gap(reference(x), module(x)) <= EXACT
        assert space.cost(config)["params"][0] == parameter_count(subnet.tensors()) or not space.costs.exact


@slow
@given(networks(most=6), st.integers(0, 2**16))
def test_shapes_text_and_files_tell_the_truth(example: Example, seed: int) -> None:
    space = space_of(example)
    subnet = coppice.extract(space, space.random(seed))
    subnet.graph.verify()
    x = example.inputs()
    with torch.no_grad():
        expected = Watched(subnet.graph).run(x)
        text = to_text(subnet.graph)
        graph = subnet.graph
        again = from_text(text, graph.tensors, in_spec=graph.in_spec, out_spec=graph.out_spec, aliases=graph.aliases)
        assert to_text(again) == text
        assert gap(expected, again.run(x)) == 0
        with tempfile.TemporaryDirectory() as folder:
            loaded = coppice.load(subnet.save(Path(folder) / "subnet"))
        assert gap(loaded.module(x), graph.run(x)) == 0


@slow
@given(networks(most=6))
def test_a_zero_unit_leaves_without_a_trace(example: Example) -> None:
    """Zero one unit of each family, cut it, and nothing moves."""
    space = space_of(example)
    for k, family in enumerate(space.families[:4]):
        if family.size > 1:
            config = single(space, k, family.size // 2)
            subnet = coppice.extract(space, config)
            x = example.inputs(3 if space.graph.batch_dynamic else 2).double()
            with torch.no_grad():
                assert gap(masked(example.network, space, config)(x), subnet.module.double()(x)) <= EXACT


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
