"""The regions of a graph that one edge alone needs, as subtrees of its post-dominator tree; and their names.

A virtual node stands on every edge from an operand to a join that can do without it. What the virtual node
post-dominates, every path from there to the output crosses that edge: it is needed for this operand alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import networkx as nx
from torch import fx

from coppice.core.graph import Graph
from coppice.core.ops import Join

Edge = tuple[fx.Node, fx.Node]

MOST = 0.8
"""A segment bears a module's name if it holds this part of the module's calls: some may serve other modules, too."""


class Regions:
    """The post-dominator tree, with a virtual node on every edge of ``edges``; subtrees are runs of one list."""

    def __init__(self, graph: Graph, edges: Iterable[Edge]) -> None:
        self.virtual = set(edges)
        backwards: nx.DiGraph = nx.DiGraph()
        for node in graph.fx.nodes:
            for user in node.users:
                if (node, user) in self.virtual:
                    backwards.add_edge(user, (node, user))
                    backwards.add_edge((node, user), node)
                else:
                    backwards.add_edge(user, node)
        parent = nx.immediate_dominators(backwards, graph.output())
        position = {node: k for k, node in enumerate(graph.fx.nodes)}
        children: dict[fx.Node | Edge, list[fx.Node | Edge]] = {}
        for node, above in parent.items():
            if above is not None and above != node:
                children.setdefault(above, []).append(node)
        self.order: list[fx.Node | Edge] = []
        self.span: dict[fx.Node | Edge, tuple[int, int]] = {}
        self.above: dict[Edge, Edge | None] = {}
        stack: list[tuple[fx.Node | Edge, Edge | None, bool]] = [(graph.output(), None, False)]
        while stack:
            node, segment, done = stack.pop()
            if done:
                self.span[node] = (self.span[node][0], len(self.order))
                continue
            self.span[node] = (len(self.order), 0)
            self.order.append(node)
            stack.append((node, segment, True))
            if isinstance(node, tuple):
                self.above[node] = segment
                segment = node
            below = children.get(node, [])
            below.sort(key=lambda n: position[n[0] if isinstance(n, tuple) else n])
            stack += [(child, segment, False) for child in below]

    def of(self, edge: Edge) -> list[fx.Node]:
        """What only this edge needs."""
        start, end = self.span[edge]
        return [node for node in self.order[start:end] if isinstance(node, fx.Node)]

    def entries(self, edge: Edge, dynamic: set[fx.Node]) -> set[fx.Node]:
        """The values from the model's input that the region of ``edge`` reads from outside."""
        region = set(self.of(edge))
        return {x for node in region for x in node.all_input_nodes if x in dynamic and x not in region}


# ---- parallel operators --------------------------------------------------------------------------------------------


def parallel(edges: Iterable[Edge], regions: Regions, dynamic: set[fx.Node], joins: Mapping[fx.Node, Join]) -> Branches:
    """The largest sums whose operands, through sums of sums, are all in ``edges`` and start from one value."""
    known = set(edges)
    tops = {join for _, join in known if joins[join].parts is None}
    result: Branches = {}
    taken: set[Edge] = set()
    for top in sorted(tops, key=lambda node: regions.span[node][0]):
        found = _branches(top, known, regions, dynamic, joins)
        if found and taken.isdisjoint(found):
            result[top] = found
            taken.update(found)
    return result


Branches = dict[fx.Node, list[Edge]]


def _branches(
    top: fx.Node, known: set[Edge], regions: Regions, dynamic: set[fx.Node], joins: Mapping[fx.Node, Join]
) -> list[Edge]:
    found: list[Edge] = []
    stack = [top]
    while stack:
        join = stack.pop()
        for operand in [node for node in join.all_input_nodes if node in dynamic]:
            if (operand, join) not in known:
                return []
            inner = joins.get(operand)
            if inner is not None and inner.parts is None and len(operand.users) == 1:
                stack.append(operand)
            else:
                found.append((operand, join))
    entries = [regions.entries(edge, dynamic) for edge in found]
    single = all(len(entry) == 1 and entry == entries[0] for entry in entries)
    return sorted(found, key=lambda edge: -regions.span[edge][0]) if single and len(found) > 1 else []


# ---- names ---------------------------------------------------------------------------------------------------------


def common(chains: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The longest prefix of all ``chains``."""
    columns = zip(*chains, strict=False)
    return tuple(column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


class Names:
    """Names regions after modules: the one that holds most of the region and nothing else, or that it lies in."""

    def __init__(self, graph: Graph) -> None:
        self.calls: dict[str, int] = {}
        for node in graph.fx.nodes:
            if node.op == "call_function":
                for module in node.meta.get("modules", ()):
                    self.calls[module] = self.calls.get(module, 0) + 1
        self.taken: dict[str, int] = {}
        self.sums: dict[str, int] = {}

    def segment(self, edge: Edge, calls: Sequence[fx.Node], partial: bool) -> str:
        """``partial``: the operand is itself a sum of segments, which have the better right to their modules' names."""
        return self._unique(self.taken, self._called(edge, calls, partial))

    def choice(self, top: fx.Node) -> str:
        """The innermost module in which the branches are summed up."""
        modules = [module for module in top.meta.get("modules", ()) if module]
        return self._unique(self.sums, modules[-1] if modules else top.name)

    def _unique(self, taken: dict[str, int], name: str) -> str:
        """``name``, or ``name#2`` and so on where it is taken."""
        taken[name] = taken.get(name, 0) + 1
        return name if taken[name] == 1 else f"{name}#{taken[name]}"

    def _called(self, edge: Edge, calls: Sequence[fx.Node], partial: bool) -> str:
        """The largest module inside if it reads half of the tensors, else the smallest one around."""
        held: dict[str, int] = {}
        reads: dict[str, int] = {"": 0}
        for node in calls:
            reader = any(operand.op == "get_attr" for operand in node.all_input_nodes)
            for module in dict.fromkeys(("", *node.meta.get("modules", ()))):
                held[module] = held.get(module, 0) + 1
                reads[module] = reads.get(module, 0) + reader
        inside = [m for m, n in held.items() if m and MOST * self.calls[m] <= n]
        around = [m for m, n in held.items() if m and n == len(calls)]
        largest = max(inside, key=lambda module: (held[module], -len(module)), default="")
        closest = max(around, key=len, default="")
        half = bool(largest) and 2 * reads[largest] >= reads[""]
        return (largest if half and not partial else closest) or largest or edge[0].name
