"""Whatever segments are erased together: what the space calls valid is a model, and it equals its masked reference."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import fx, nn

import coppice
from coppice import Config, Space, UsageError
from properties.hierarchies import hierarchies, image
from properties.networks import some
from properties.reference import gap

EXACT = 1e-9


def space_of(net: nn.Module) -> Space:
    return coppice.build_space(coppice.trace(net, image(2)))


@some(40)
@given(hierarchies())
@torch.no_grad()
def test_any_valid_choice_is_a_model_and_equals_its_reference(net: nn.Module) -> None:
    space = space_of(net)
    for seed, erase in enumerate((0.3, 0.7, 1.0)):
        config = space.random(seed, erase=erase)
        subnet = coppice.extract(space, config, validate=False)
        for batch in (2, 3):
            x = image(batch)
            wanted = expected(space, config, x)
            assert gap(wanted, subnet.graph.run(x)) <= EXACT
            assert gap(wanted, subnet.module(x)) <= EXACT, subnet.receipt["module"]
        assert subnet.receipt["costs"]["params"]["after"] == sum(p.numel() for p in subnet.module.parameters())
        assert set(subnet.graph.tensors) <= set(space.graph.tensors) - space.dead_tensors(config.skip)


@some(40)
@given(hierarchies())
def test_what_is_valid_is_what_a_slow_walk_finds(net: nn.Module) -> None:
    """Validity and liveness against a walk over the graph without the erased edges."""
    space = space_of(net)
    rng = np.random.default_rng(0)
    erased = rng.random((24, len(space.segments))) < rng.random((24, 1))
    live = space.segments.liveness.evaluate(erased)
    for row, alive, valid in zip(erased, live, space.segments.valid(erased), strict=True):
        gone = {(s.operand, s.join) for s, out in zip(space.segments, row, strict=True) if out}
        edges = nx.DiGraph([(u, n) for n in space.graph.nodes for u in n.users if (n, u) not in gone])
        edges.add_node(space.graph.output())
        needed = nx.descendants(edges, space.graph.output()) | {space.graph.output()}
        assert {n for n, rule in space.segments.liveness.nodes.items() if alive[rule]} == needed
        assert valid == _goes_on(space, needed, gone)
        names = [s.name for s, out in zip(space.segments, row, strict=True) if out]
        if valid:
            kept = space.segments.check(names)
            again = space.segments.liveness.evaluate(space.segments.erased(kept)[None])[0]
            assert (again == alive).all(), "segments inside erased ones do not matter"
        else:
            with pytest.raises(UsageError):
                space.segments.check(names)


def _goes_on(space: Space, needed: set[fx.Node], gone: set[tuple[fx.Node, fx.Node]]) -> bool:
    """Every needed join has an operand of its own shape left that comes from the input, and the input is read."""
    for node in space.graph.nodes:
        if node in needed and any(join is node for _, join in gone):
            operands = [n for n in node.all_input_nodes if (n, node) not in gone]
            if not operands:
                return False
    return all(node in needed for node in space.graph.placeholders())


@some(20)
@given(hierarchies())
def test_costs_of_a_population_are_those_of_its_members(net: nn.Module) -> None:
    space = space_of(net)
    configs = [space.random(seed, erase=0.5) for seed in range(6)]
    together = space.cost(configs)
    for k, config in enumerate(configs):
        alone = space.cost(config)
        left = space.without(config.skip).cost(Config.of(dict(config.keep)))
        for metric, values in together.items():
            assert values[k] == alone[metric][0] == left[metric][0]


def expected(space: Space, config: Config, x: torch.Tensor) -> torch.Tensor:
    """The full graph, call by call, on the masked tensors; operands of sums that are erased are multiplied by zero."""
    tensors = space.masked_tensors(config)
    gates = {(s.operand, s.join) for s in map(space.segments.named, config.skip) if not s.families}
    values: dict[fx.Node, torch.Tensor] = {}
    for node in space.graph.nodes:
        if node.op == "placeholder":
            values[node] = x
        elif node.op == "get_attr":
            values[node] = tensors[str(node.target)]
        elif node.op == "call_function":
            given = {n: values[n] * 0 if (n, node) in gates else values[n] for n in node.all_input_nodes}
            args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    (result,) = space.graph.output().all_input_nodes
    return values[result]
