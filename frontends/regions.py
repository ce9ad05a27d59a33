"""Regions of an exported program (``with torch.no_grad():``, ``with torch.autocast(...):``), put back in line."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def inlined(graph: fx.Graph) -> fx.Graph:
    """``graph`` with the bodies of its regions in place; as it is where it has none.

    Whether gradients are recorded changes no value, nor does autocast where it is off (else see `casts`).
    """
    if not any(_is_region(node) for node in graph.nodes):
        return graph
    result = fx.Graph()
    result.output(_copied(graph, result, {}))
    return result


def casts(graph: fx.Graph) -> bool:
    """Whether some region runs under autocast: its casts stand in the graph only after ``run_decompositions``."""
    regions = [node for node in graph.nodes if _is_region(node)]
    return any((node.target is AUTOCAST and node.args[2]) or casts(_body_of(node)[0]) for node in regions)


def _is_region(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (GRAD, AUTOCAST)


def _copied(graph: fx.Graph, into: fx.Graph, env: dict[fx.Node, Any]) -> Any:
    """Copy all nodes; returns what ``graph`` puts out. ``env`` holds the values of a body's placeholders."""
    for node in graph.nodes:
        if node.op == "output":
            return fx.map_arg(node.args[0], lambda n: env[n])
        if node in env or (node.op == "get_attr" and all(_is_region(user) for user in node.users)):
            continue
        if _is_region(node):
            env[node] = _body(node, into, env)
        elif node.target is operator.getitem and isinstance(env[node.args[0]], (tuple, list)):
            env[node] = env[node.args[0]][node.args[1]]
        else:
            env[node] = into.node_copy(node, lambda n: env[n])
    return None


def _body(node: fx.Node, into: fx.Graph, env: dict[fx.Node, Any]) -> Any:
    body, operands = _body_of(node)
    given = [env[arg] if isinstance(arg, fx.Node) else arg for arg in operands]
    places = [inner for inner in body.nodes if inner.op == "placeholder"]
    return _copied(body, into, dict(zip(places, given, strict=True)))


def _body_of(node: fx.Node) -> tuple[fx.Graph, tuple[Any, ...]]:
    """A region's graph, and what it is called with."""
    at = next(k for k, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
    name = node.args[at]
    assert isinstance(name, fx.Node)
    body: Any = getattr(node.graph.owning_module, str(name.target))
    return body.graph, node.args[at + 1 :]
