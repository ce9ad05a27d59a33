"""The graph that a subnet must equal on the masked tensors: the full one, but for what zeros alone cannot say.

Operands of sums that are erased are zero in it, and with ``residual="renormalise"`` norms average over as many units as
stay. Nothing is cut: what the erased segments compute is computed, and multiplied by nothing.
"""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakValueDictionary

import torch
from torch import fx

from coppice.core.config import Config
from coppice.core.graph import Graph
from coppice.core.space import Space
from coppice.passes.extract.slice import SpaceCut


def reference_graph(space: Space, config: Config) -> Graph:
    """``space.graph`` itself, unless ``config`` erases operands of sums or the space renormalises.

    Removed positions are zero where they are averaged over, so only the count that a sum is divided by changes.
    """
    graph = space.graph
    zeros = {(s.operand, s.join) for s in map(space.segments.named, config.skip) if not s.families}
    if space.residual != "renormalise" and not zeros:
        return graph
    view = SpaceCut(space, config)
    body = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.fx.nodes:
        operands = {n: _zero(body, env[n], n) if (n, node) in zeros else env[n] for n in node.all_input_nodes}
        env[node] = new = body.node_copy(node, lambda n, operands=operands: operands[n])  # type: ignore[misc]
        new.meta = dict(node.meta)
        renormalised = space.residual == "renormalise" and node.op == "call_function"
        found = view.averaged(node) if renormalised else None
        if found is not None:
            average, present, full = found
            env[node] = average.drop_zeros(body, new, present, full)
    result = replace(graph, fx=body, model=None, spaces=WeakValueDictionary(), version=0)
    result.verify()
    return result


def _zero(body: fx.Graph, operand: fx.Node, full: fx.Node) -> fx.Node:
    zero = body.call_function(torch.ops.aten.zeros_like.default, (operand,))
    zero.meta = dict(full.meta)
    return zero
