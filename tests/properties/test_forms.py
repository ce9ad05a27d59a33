"""Graphs and subnets of any network survive being written down."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import given
from torch.utils._pytree import tree_leaves

import coppice
from coppice.core.graph import Graph
from coppice.core.text import from_text, to_text
from properties.networks import Example, networks, some


def parsed(graph: Graph) -> Graph:
    return from_text(
        to_text(graph), graph.tensors, in_spec=graph.in_spec, out_spec=graph.out_spec, aliases=graph.aliases
    )


def same(a: object, b: object) -> bool:
    left, right = tree_leaves(a), tree_leaves(b)
    return len(left) == len(right) and all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


@some(50)
@given(networks())
@torch.no_grad()
def test_text_parses_back(example: Example) -> None:
    space = coppice.build_space(coppice.trace(example.network, example.inputs()))
    for graph in (space.graph, coppice.extract(space, space.random(0), validate=False).graph):
        back = parsed(graph)
        assert to_text(back) == to_text(graph)
        for batch in (2, 4):
            x = example.inputs(batch)
            assert same(graph.run(x), back.run(x))


@some(40)
@given(networks())
@torch.no_grad()
def test_a_saved_subnet_comes_back_bit_for_bit(example: Example) -> None:
    space = coppice.build_space(coppice.trace(example.network, example.inputs()))
    subnet = coppice.extract(space, space.random(0), validate=False)
    with tempfile.TemporaryDirectory() as folder:
        subnet.save(Path(folder) / "subnet")
        loaded = coppice.load(Path(folder) / "subnet")
        assert set(loaded.graph.tensors) == set(subnet.graph.tensors)
        for name, tensor in subnet.graph.tensors.items():
            assert torch.equal(loaded.graph.tensors[name], tensor)
        x = example.inputs(3)
        assert same(subnet.graph.run(x), loaded.graph.run(x))
        assert same(loaded.graph.run(x), loaded.module(x))
        assert loaded.receipt["config"] == subnet.receipt["config"]
