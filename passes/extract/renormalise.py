"""The reference of ``residual="renormalise"``: the full graph, its norms averaging over as many units as stay."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakValueDictionary

from torch import fx

from coppice.core.config import Config
from coppice.core.graph import Graph
from coppice.core.space import Space
from coppice.passes.extract.slice import SpaceCut


def reference_graph(space: Space, config: Config) -> Graph:
    """What the subnet of ``config`` must equal when it runs on the masked tensors: ``space.graph`` unless renormalised.

    Removed positions are zero where they are averaged over, so only the count that a sum is divided by changes.
    """
    graph = space.graph
    if space.residual != "renormalise":
        return graph
    view = SpaceCut(space, config)
    body = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.fx.nodes:
        env[node] = new = body.node_copy(node, lambda n: env[n])
        new.meta = dict(node.meta)
        found = view.averaged(node) if node.op == "call_function" else None
        if found is not None:
            average, present, full = found
            env[node] = average.drop_zeros(body, new, present, full)
    result = replace(graph, fx=body, model=None, spaces=WeakValueDictionary(), version=0)
    result.verify()
    return result
