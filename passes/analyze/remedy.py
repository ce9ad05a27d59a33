"""What would free a frozen unit: the reason's own remedy, else that of the op's row, else what its place says."""

from __future__ import annotations

from coppice.core.graph import Graph
from coppice.core.labels import Reason
from coppice.core.ops import lookup

GIVEN = "nothing: whoever calls the model fixes this size"
READ = "nothing: whoever reads the output fixes this size; a model with fewer outputs is another model"


class Remedies:
    """Finds remedies by the node that a reason names."""

    def __init__(self, graph: Graph) -> None:
        self._nodes = {node.name: node for node in graph.fx.nodes}

    def __call__(self, reason: Reason, source: str = "") -> str:
        """The remedy for ``reason``; ``source`` stands in where the reason has no line of its own."""
        if reason.remedy:
            return reason.remedy
        node = self._nodes.get(reason.node)
        if node is None:
            where = reason.source or source
            return f"rewrite the computation{f' at {where}' if where else ''} so that each unit stands alone"
        if node.op == "placeholder":
            return GIVEN
        if node.op == "output":
            return READ
        op = lookup(node.target)
        if op is not None and op.remedy:
            return op.remedy
        where = f" at {reason.source or source}" if reason.source or source else ""
        return f"rewrite `{node.name}`{where} so that each unit is computed apart from the others"
