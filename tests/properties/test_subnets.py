"""A subnet of any network computes what the masked network computes, costs what the space says, and can be saved."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from hypothesis import given
from torch import nn
from torch.utils._pytree import tree_leaves

import coppice
from coppice import Config, Space, Subnet
from coppice.core.graph import Graph
from coppice.core.text import from_text, to_text
from properties.networks import Example, networks, some
from properties.reference import Watched, gap, masked, parameter_count, single, zero

EXACT = 1e-9
READERS = {nn.Conv2d: 1, nn.Linear: 1, nn.ConvTranspose2d: 0}
"""The axis of a layer's weight along which it reads units."""


def space_of(example: Example) -> Space:
    return coppice.build_space(coppice.trace(example.network, example.inputs()))


def wide(graph: Graph) -> dict[str, torch.Tensor]:
    return {name: t.detach().double() if t.is_floating_point() else t for name, t in graph.tensors.items()}


def same(a: object, b: object) -> bool:
    left, right = tree_leaves(a), tree_leaves(b)
    return len(left) == len(right) and all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


@some(60)
@given(networks(dtype=torch.float64))
@torch.no_grad()
def test_a_subnet_is_the_masked_network(example: Example) -> None:
    space = space_of(example)
    Watched(space.graph).run(example.inputs())
    parses_back(space.graph, example)
    for seed in range(2):
        config = space.random(seed)
        subnet = coppice.extract(space, config, validate=False)
        only_makers_are_masked(example, space, config)
        equals(subnet, masked(example.network, space, config), example)
        subnet.graph.verify()
        Watched(subnet.graph).run(example.inputs())
    parses_back(subnet.graph, example)


def equals(subnet: Subnet, reference: nn.Module, example: Example) -> None:
    """Graph and module, in fp64 and at two batch sizes, against a reference that coppice had no hand in."""
    module = copy.deepcopy(subnet.module).double()
    for batch in (2, 5):
        x = example.inputs(batch).double()
        expected = reference(x)
        assert gap(expected, subnet.graph.run(x, tensors=wide(subnet.graph))) <= EXACT
        assert gap(expected, module(x)) <= EXACT, subnet.receipt["module"]
        assert gap(expected, subnet.reference().double()(x)) <= EXACT


def only_makers_are_masked(example: Example, space: Space, config: Config) -> None:
    """Were the readers of a unit zeroed too, any network would seem prunable."""
    masks = space.zero_masks(config)
    for name, module in example.network.named_modules():
        axis = READERS.get(type(module))
        if axis is not None and f"{name}.weight" in masks and getattr(module, "groups", 1) == 1:
            assert masks[f"{name}.weight"][axis] is None, f"{name} reads a unit and is masked along it"


def parses_back(graph: Graph, example: Example) -> None:
    """The text form gives the same graph."""
    text, x = to_text(graph), example.inputs(4)
    back = from_text(text, graph.tensors, in_spec=graph.in_spec, out_spec=graph.out_spec, aliases=graph.aliases)
    assert to_text(back) == text
    assert same(graph.run(x), back.run(x))


@some(25)
@given(networks())
def test_costs_are_those_of_the_subnet(example: Example) -> None:
    """Parameters are counted; MACs are those of the subnet traced again."""
    space = space_of(example)
    before = space.cost(space.full())
    assert before["params"][0] == parameter_count(space.graph.tensors)
    for seed in range(3):
        config = space.random(seed)
        subnet = coppice.extract(space, config, validate=False)
        cost = space.cost(config)
        if space.costs.exact:
            assert cost["params"][0] == parameter_count(subnet.graph.tensors)
    if space.families and space.costs.exact:
        again = coppice.build_space(coppice.trace(subnet.module, example.inputs()))
        full = again.cost(again.full())
        assert cost["macs"][0] == full["macs"][0]
        assert cost["params"][0] == full["params"][0]


@some(20)
@given(networks(dtype=torch.float64))
@torch.no_grad()
def test_a_zero_group_can_be_cut(example: Example) -> None:
    """One unit of each family: its slices are set to zero in the model itself, which is traced anew and cut."""
    space = space_of(example)
    for index, family in list(enumerate(space.families))[:3]:
        if family.size < 2:
            continue
        config = single(space, index, family.size - 1)
        zeroed = copy.deepcopy(example.network).double()
        zero(zeroed, space.zero_masks(config))
        own = coppice.build_space(coppice.trace(zeroed, example.inputs().double()))
        assert [(f.name, f.size) for f in own.families] == [(f.name, f.size) for f in space.families]
        subnet = coppice.extract(own, single(own, index, family.size - 1))
        x = example.inputs(3).double()
        assert gap(zeroed(x), subnet.module(x)) <= EXACT, family


@some(25)
@given(networks())
@torch.no_grad()
def test_a_saved_subnet_comes_back_bit_for_bit(example: Example) -> None:
    space = space_of(example)
    subnet = coppice.extract(space, space.random(0), validate=False)
    with tempfile.TemporaryDirectory() as folder:
        loaded = coppice.load(subnet.save(Path(folder) / "subnet"))
    assert set(loaded.graph.tensors) == set(subnet.graph.tensors)
    assert all(same(loaded.graph.tensors[name], tensor) for name, tensor in subnet.graph.tensors.items())
    x = example.inputs(3)
    assert same(subnet.graph.run(x), loaded.graph.run(x))
    assert same(loaded.graph.run(x), loaded.module(x))
    assert loaded.receipt == subnet.receipt
