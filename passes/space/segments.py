"""Which segments a graph has: operands of joins that can be erased, and what only they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import fx

from coppice.core.calls import Call
from coppice.core.graph import Graph, value_of
from coppice.core.labels import Ids, Label
from coppice.core.ops import Join, lookup
from coppice.core.segments import ALWAYS, Choice, Liveness, Rule, Segment, Segments
from coppice.core.solve import Solution
from coppice.passes.space.regions import Edge, Names, Regions, common, parallel


def find_segments(
    graph: Graph,
    labels: Mapping[fx.Node, Label | tuple[Label, ...]],
    solution: Solution,
    leaves: Ids,
    families: Sequence[Ids],
) -> Segments:
    """All segments of ``graph`` in its order, and when each node is needed. Near-linear in the number of nodes.

    A sum may lose an operand wherever another one from the model's input has the sum's own shape. A concatenation may
    lose a part if its units are made in the segment and nowhere else read but behind the concatenation. What holds no
    tensor is a segment only beside one that does, as an operator to choose.
    """
    dynamic = _from_input(graph)
    joins = {node: join for node in graph.fx.nodes if node in dynamic and (join := _join(node)) is not None}
    keepers = {node: _keepers(node, join, dynamic) for node, join in joins.items()}
    edges = [
        (operand, node)
        for node, join in joins.items()
        for operand in join.operands(Call(node))
        if operand in dynamic and any(other is not operand for other in keepers[node])
    ]
    if not edges:
        return Segments(liveness=_liveness(graph, {}))
    regions = Regions(graph, edges)
    units = _Units(labels, solution, leaves, families)
    readers = _readers(graph)
    found: dict[Edge, _Found] = {}
    for edge in edges:
        region = regions.of(edge)
        calls = [node for node in region if node.op == "call_function"]
        if dynamic.isdisjoint(calls) or any(node.op == "placeholder" for node in region):
            continue
        along = joins[edge[1]].axis(Call(edge[1])) if joins[edge[1]].parts is not None else None
        gone = units.private(edge, along, region) if along is not None else ((), np.zeros(0, np.int64))
        if gone is not None:
            found[edge] = _Found(calls, _only_in(region, readers), *gone)
    choices = {
        top: branches
        for top, branches in parallel(found, regions, dynamic, joins).items()
        if any(found[edge].tensors for edge in branches)
    }
    beside = {edge for branches in choices.values() for edge in branches}
    found = {edge: own for edge, own in found.items() if own.tensors or edge in beside}
    numbers = {edge: k for k, edge in enumerate(found)}
    kept = {
        join: tuple(numbers[node, join] for node in operands)
        for join, operands in keepers.items()
        if operands and all((node, join) in numbers for node in operands)
    }
    names = Names(graph)
    items = _segments(found, regions, readers, names)
    inputs = tuple(node for node in graph.placeholders() if node.users)
    sums = tuple(
        Choice(names.choice(top), tuple(items[numbers[edge]].name for edge in branches))
        for top, branches in reversed(choices.items())
    )
    return Segments(items, _liveness(graph, numbers), kept, inputs, sums)


@dataclass(frozen=True, eq=False)
class _Found:
    calls: list[fx.Node]
    tensors: tuple[str, ...]
    families: tuple[int, ...]
    classes: Ids


def _readers(graph: Graph) -> dict[str, list[fx.Node]]:
    result: dict[str, list[fx.Node]] = {name: [] for name in graph.tensors}
    for node in graph.fx.nodes:
        if node.op == "get_attr":
            result[str(node.target)].append(node)
    return result


def _only_in(region: Sequence[fx.Node], readers: Mapping[str, list[fx.Node]]) -> tuple[str, ...]:
    """The tensors that nothing outside ``region`` reads."""
    inside = set(region)
    read = dict.fromkeys(str(node.target) for node in region if node.op == "get_attr")
    return tuple(name for name in read if inside.issuperset(readers[name]))


def _segments(
    found: Mapping[Edge, _Found], regions: Regions, readers: Mapping[str, list[fx.Node]], names: Names
) -> tuple[Segment, ...]:
    sums = {join for _, join in found}
    called = {edge: names.segment(edge, own.calls, edge[0] in sums) for edge, own in found.items()}
    result = []
    for edge, own in found.items():
        above = regions.above[edge]
        while above is not None and above not in called:
            above = regions.above[above]
        users = [user for name in own.tensors for node in readers[name] for user in node.users]
        result.append(
            Segment(
                name=called[edge],
                join=edge[1],
                operand=edge[0],
                parent="" if above is None else called[above],
                tensors=own.tensors,
                calls=len(own.calls),
                source=str(edge[1].meta.get("source", "")),
                modules=common([node.meta.get("modules", ()) for node in (edge[1], *users)]),
                families=own.families,
                classes=own.classes,
            )
        )
    return tuple(result)


def _from_input(graph: Graph) -> set[fx.Node]:
    """The nodes that depend on an input of the model."""
    result: set[fx.Node] = set()
    for node in graph.fx.nodes:
        if node.op == "placeholder" or any(operand in result for operand in node.all_input_nodes):
            result.add(node)
    return result


def _join(node: fx.Node) -> Join | None:
    op = lookup(node.target) if node.op == "call_function" else None
    return op.join if op is not None and op.join is not None and op.join.operands(Call(node)) else None


def _keepers(node: fx.Node, join: Join, dynamic: set[fx.Node]) -> tuple[fx.Node, ...]:
    """The operands from the input that, alone, still give ``node`` its dtype and (for a sum) its shape."""
    out = value_of(node)
    result = []
    for operand in dict.fromkeys(node.all_input_nodes):
        if operand in dynamic:
            own = value_of(operand)
            same = own.shape == out.shape and own.symbols == out.symbols
            if own.dtype is out.dtype and (same or join.parts is not None):
                result.append(operand)
    return tuple(result)


class _Units:
    """Which families' units lie along an axis, and where else they do."""

    def __init__(
        self,
        labels: Mapping[fx.Node, Label | tuple[Label, ...]],
        solution: Solution,
        leaves: Ids,
        families: Sequence[Ids],
    ) -> None:
        self.labels, self.solution, self.leaves, self.families = labels, solution, leaves, families
        self.family_of = np.full(solution.size, -1, np.int64)
        for f, classes in enumerate(families):
            self.family_of[classes] = f
        self._known: dict[int, tuple[Ids, frozenset[int]]] = {}
        self._carriers: dict[int, set[fx.Node]] | None = None

    def private(self, edge: Edge, axis: int, region: Sequence[fx.Node]) -> tuple[tuple[int, ...], Ids] | None:
        """The families that make up ``axis`` of the operand, if all their units leave with it; else None."""
        operand, join = edge
        label = self.labels[operand]
        assert isinstance(label, Label)
        runs = [factor.ids for factor in label.axes[axis] if factor.ids is not None]
        if len(runs) != 1 or len(label.axes[axis]) != 1:
            return None
        rows = self.leaves[self.solution.class_of[runs[0]]]
        if not (rows >= 0).any(axis=1).all():
            return None
        gone = np.unique(rows[rows >= 0])
        owners = tuple(np.unique(self.family_of[gone]).tolist())
        if -1 in owners or sum(len(self.families[f]) for f in owners) != len(gone):
            return None
        return (owners, gone) if self._stays_behind(set(owners), set(region), join) else None

    def _stays_behind(self, families: set[int], region: set[fx.Node], join: fx.Node) -> bool:
        """Whether all values that carry the families are in the region, or come from the join through such values."""
        carriers = set().union(*(self.carriers[f] for f in families)) - region
        reached, stack = {join}, [join]
        while stack:
            for user in stack.pop().users:
                if user in carriers and user not in reached:
                    reached.add(user)
                    stack.append(user)
        return carriers <= reached

    @property
    def carriers(self) -> dict[int, set[fx.Node]]:
        """Per family, the calls with an axis that its units lie along."""
        if self._carriers is None:
            self._carriers = {f: set() for f in range(len(self.families))}
            for node, label in self.labels.items():
                if node.op == "call_function":
                    for f in self._families_of(label):
                        self._carriers[f].add(node)
        return self._carriers

    def _families_of(self, label: Label | tuple[Label, ...]) -> set[int]:
        parts = label if isinstance(label, tuple) else (label,)
        runs = [f.ids for part in parts for axis in part.axes for f in axis if f.ids is not None]
        return set().union(*(self._along(ids) for ids in runs)) if runs else set()

    def _along(self, ids: Ids) -> frozenset[int]:
        known = self._known.get(id(ids))
        if known is None:
            rows = self.leaves[self.solution.class_of[ids]]
            known = self._known[id(ids)] = (ids, frozenset(self.family_of[rows[rows >= 0]].tolist()) - {-1})
        return known[1]


# ---- liveness ------------------------------------------------------------------------------------------------------


def _liveness(graph: Graph, segments: Mapping[Edge, int]) -> Liveness:
    """The rule of each node and tensor: equal sets of (user's rule, segment between) are one rule."""
    rules = _Rules()
    nodes: dict[fx.Node, int] = {}
    reads: dict[str, list[tuple[int, int]]] = {}
    for node in reversed(graph.nodes):
        uses = [(nodes[user], segments.get((node, user), -1)) for user in node.users]
        nodes[node] = ALWAYS if node.op == "output" else rules.any_of(uses)
        if node.op == "get_attr":
            reads.setdefault(str(node.target), []).append((nodes[node], -1))
    tensors = {name: rules.any_of(reads.get(name, [])) for name in graph.tensors}
    return Liveness(tuple(rules.items), nodes, tensors)


@dataclass
class _Rules:
    items: list[Rule] = field(default_factory=lambda: [()])
    known: dict[Rule, int] = field(default_factory=dict)

    def any_of(self, uses: Iterable[tuple[int, int]]) -> int:
        rule = tuple(sorted(set(uses)))
        if (ALWAYS, -1) in rule or not rule:  # what nobody reads is not erased with anything, either
            return ALWAYS
        if len(rule) == 1 and rule[0][1] < 0:
            return rule[0][0]
        if rule not in self.known:
            self.known[rule] = len(self.items)
            self.items.append(rule)
        return self.known[rule]
