"""A subnet of any network computes what the masked network computes, and costs what the space says."""

from __future__ import annotations

import copy

import torch
from hypothesis import given
from torch import nn

import coppice
from coppice import Space
from coppice.core.graph import Graph
from properties.networks import Example, networks, some
from properties.reference import Watched, gap, masked, parameter_count, single, zero

EXACT = 1e-9


def space_of(example: Example, model: nn.Module | None = None) -> Space:
    return coppice.build_space(coppice.trace(model or example.network, example.inputs()))


def wide(graph: Graph) -> dict[str, torch.Tensor]:
    return {name: t.detach().double() if t.is_floating_point() else t for name, t in graph.tensors.items()}


@some(60)
@given(networks())
@torch.no_grad()
def test_a_subnet_is_the_masked_network(example: Example) -> None:
    """Its graph and its module, in fp64 and at two batch sizes, against a reference that coppice had no hand in."""
    space = space_of(example)
    for seed in range(2):
        config = space.random(seed)
        subnet = coppice.extract(space, config, validate=False)
        reference, module = masked(example.network, space, config), copy.deepcopy(subnet.module).double()
        for batch in (2, 5):
            x = example.inputs(batch).double()
            expected = reference(x)
            assert gap(expected, subnet.graph.run(x, tensors=wide(subnet.graph))) <= EXACT
            assert gap(expected, module(x)) <= EXACT, subnet.receipt["module"]
            assert gap(expected, subnet.reference().double()(x)) <= EXACT


@some(40)
@given(networks())
def test_readers_are_cut_and_never_masked(example: Example) -> None:
    """Only what makes a unit is zeroed: were its readers zeroed too, any network would seem prunable."""
    space = space_of(example)
    masks = space.zero_masks(space.random(0))
    readers = {nn.Conv2d: 1, nn.Linear: 1, nn.ConvTranspose2d: 0}
    for name, module in example.network.named_modules():
        axis = readers.get(type(module))  # type: ignore[arg-type]
        if axis is not None and f"{name}.weight" in masks:
            assert masks[f"{name}.weight"][axis] is None, f"{name} reads a unit and is masked along it"


@some(40)
@given(networks())
@torch.no_grad()
def test_a_subnet_graph_is_what_it_says(example: Example) -> None:
    """It verifies, and every value has the shape and dtype that the graph notes."""
    space = space_of(example)
    for config in (space.uniform(0.5), space.random(1)):
        graph = coppice.extract(space, config, validate=False).graph
        graph.verify()
        Watched(graph).run(example.inputs())
    Watched(space.graph).run(example.inputs())


@some(40)
@given(networks())
def test_costs_are_those_of_the_subnet(example: Example) -> None:
    """Parameters are counted, and MACs are those of the subnet traced again."""
    space = space_of(example)
    for seed in range(3):
        config = space.random(seed)
        subnet = coppice.extract(space, config, validate=False)
        cost = space.cost(config)
        if space.costs.exact:
            assert cost["params"][0] == parameter_count(subnet.graph.tensors)
    if not space.families:
        return
    again = coppice.build_space(coppice.trace(subnet.module, example.inputs()))
    full = again.cost(again.full())
    if space.costs.exact:
        assert cost["macs"][0] == full["macs"][0]
        assert cost["params"][0] == full["params"][0]
    before = space.cost(space.full())
    assert before["params"][0] == parameter_count(space.graph.tensors)
    assert cost["params"][0] <= before["params"][0]


@some(30)
@given(networks())
@torch.no_grad()
def test_a_zero_group_can_be_cut(example: Example) -> None:
    """One unit of each family: its slices are set to zero in the model itself, which is traced anew and cut."""
    space = space_of(example)
    for index, family in enumerate(space.families):
        if family.widths[0] == family.size:
            continue
        config = single(space, index, family.size - 1)
        zeroed = copy.deepcopy(example.network).double()
        zero(zeroed, space.zero_masks(config))
        graph = coppice.trace(zeroed, example.inputs().double())
        own = coppice.build_space(graph)
        assert [(f.name, f.size) for f in own.families] == [(f.name, f.size) for f in space.families]
        subnet = coppice.extract(own, single(own, index, family.size - 1))
        x = example.inputs(3).double()
        assert gap(zeroed(x), subnet.module(x)) <= EXACT, family
