"""Operators that run graphs of their own: ``torch.cond``, loops, maps, scans."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch.utils._pytree as pytree
from torch import fx


class HigherOrder:
    """The target of such a call: the operator, and its graphs by the names that stand for them in the arguments.

    A graph holds no tensors: whatever it reads is an argument of the call.
    """

    def __init__(self, op: Callable[..., Any], graphs: dict[str, fx.GraphModule]) -> None:
        self.op, self.graphs = op, graphs
        self.__name__, self.__module__ = str(getattr(op, "__name__", op)), "higher_order"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        filled = pytree.tree_map(lambda x: self.graphs.get(x, x) if isinstance(x, str) else x, (list(args), kwargs))
        return self.op(*filled[0], **filled[1])

    def __repr__(self) -> str:
        return f"higher_order.{self.__name__}"

    def mapped(self, change: Callable[[Any], Any]) -> HigherOrder:
        """The same operator with every literal in its graphs replaced by ``change(literal)``."""
        graphs = {name: copy.deepcopy(graph) for name, graph in self.graphs.items()}
        for graph in graphs.values():
            for part in _inside(graph):
                for node in part.graph.nodes:
                    node.args, node.kwargs = map_literals((tuple(node.args), dict(node.kwargs)), change)
                part.recompile()
        return HigherOrder(self.op, graphs)


def map_literals(arguments: Any, change: Callable[[Any], Any]) -> Any:
    """``arguments`` of a call with every leaf that is no node replaced by ``change(leaf)``."""
    return pytree.tree_map(lambda x: x if isinstance(x, fx.Node) else change(x), arguments)


def _inside(graph: fx.GraphModule) -> Iterator[fx.GraphModule]:
    return (part for part in graph.modules() if isinstance(part, fx.GraphModule))
