"""Small clean-ups of a cut graph: calls that do nothing in eval mode, and what nothing uses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from coppice.core.calls import Call
from coppice.core.graph import Graph
from coppice.core.ops import lookup
from coppice.core.passes import Pass, Pipeline


@dataclass(frozen=True)
class EraseIdentities(Pass):
    """Replace calls that return their operand (dropout in eval mode, a slice of everything) by it."""

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in graph.nodes:
            op = lookup(node.target) if node.op == "call_function" else None
            if op is not None and op.identity is not None and op.identity(Call(node)):
                operand = node.args[0]
                assert isinstance(operand, fx.Node)
                graph.replace(node, operand)
                changed = True
        return changed


@dataclass(frozen=True)
class EraseDead(Pass):
    """Erase calls and tensors that nothing uses."""

    def run(self, graph: Graph) -> bool:
        return graph.erase_dead() > 0


TIDY = Pipeline((EraseIdentities(), EraseDead()))
