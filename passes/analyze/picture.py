"""What a picture of a graph shows: a box for every call, or for every module where calls are too many."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import fx

from coppice.core.calls import op_name
from coppice.core.graph import Value, describe, is_tensor
from coppice.core.labels import Label
from coppice.core.space import Space
from coppice.passes.analyze.explain import AxisRow, Explanation, compact

FROZEN = -1
"""Stands for frozen positions among the families of a box."""

MOST_BOXES = 400


@dataclass
class Box:
    """One call, or ``calls`` of one module. ``shares`` says how much of its values each family (or `FROZEN`) has."""

    title: str
    shape: str
    module: str
    kind: str = "call"
    calls: int = 1
    shares: dict[int, float] = field(default_factory=dict)
    parameters: list[tuple[str, list[AxisRow]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """Boxes in topological order, and edges (from, to) between them; ``calls`` is how many calls the graph has."""

    boxes: list[Box]
    edges: list[tuple[int, int]]
    calls: int


def picture(space: Space, explanation: Explanation, most: int = MOST_BOXES) -> Picture:
    """The boxes of ``space.graph``, at most ``most`` of them."""
    reader = _Reader(space, explanation)
    nodes = [node for node in space.graph.fx.nodes if _shown(node)]
    runs = _runs(nodes, most)
    box_of = {node: k for k, (_, run) in enumerate(runs) for node in run}
    boxes = [reader.box(run[0]) if len(run) == 1 else reader.merged(name, run) for name, run in runs]
    edges = {(box_of[u], k) for k, (_, run) in enumerate(runs) for node in run for u in _sources(node)}
    calls = sum(node.op == "call_function" for node in nodes)
    return Picture(boxes, sorted((u, v) for u, v in edges if u != v), calls)


def _shown(node: fx.Node) -> bool:
    """Tensors are shown with what reads them, a tuple's items with the tuple, and sizes not at all."""
    if node.op == "call_function":
        return (is_tensor(node) or isinstance(node.meta.get("value"), tuple)) and node.target is not operator.getitem
    return node.op == "output" or (node.op == "placeholder" and is_tensor(node))


def _sources(node: fx.Node) -> Iterable[fx.Node]:
    for used in node.all_input_nodes:
        while used.target is operator.getitem:
            used = used.all_input_nodes[0]
        if _shown(used):
            yield used


# ---- collapsing ----------------------------------------------------------------------------------------------------


def _runs(nodes: list[fx.Node], most: int) -> list[tuple[str, list[fx.Node]]]:
    """Runs of neighbouring nodes, each with its name: single nodes, or those of one module, at most ``most``.

    Where all modules of one depth are too many and those of the next too few to say anything, neighbours are joined.
    """
    depth = max((len(_path(node)) for node in nodes), default=0)
    runs = [(_module(node), [node]) for node in nodes]
    finer = runs
    while len(runs) > most and depth > 0:
        finer, runs = runs, _by_module(nodes, depth)
        depth -= 1
    if len(runs) > most or (len(finer) > most and len(runs) < most // 4):
        runs = _joined(finer if len(runs) < most // 4 else runs, most)
    return runs


def _by_module(nodes: Sequence[fx.Node], depth: int) -> list[tuple[str, list[fx.Node]]]:
    """Nodes next to each other that ran in the same module ``depth`` levels down; others stay single."""
    runs: list[tuple[str, list[fx.Node]]] = []
    for node in nodes:
        path = _path(node)
        name = path[depth - 1] if len(path) >= depth and node.op == "call_function" else ""
        if name and runs and runs[-1][0] == name:
            runs[-1][1].append(node)
        else:
            runs.append((name, [node]))
    return [(name or _module(run[0]), run) for name, run in runs]


def _joined(runs: list[tuple[str, list[fx.Node]]], most: int) -> list[tuple[str, list[fx.Node]]]:
    """As many neighbours in one run as it takes; inputs and output stay single."""
    plain = [run for run in runs if run[1][0].op == "call_function"]
    size = -(-len(plain) // max(1, most - (len(runs) - len(plain))))
    result: list[tuple[list[str], list[fx.Node]]] = []
    for name, run in runs:
        call = run[0].op == "call_function"
        if call and result and result[-1][1][0].op == "call_function" and len(result[-1][0]) < size:
            result[-1][0].append(name)
            result[-1][1].extend(run)
        else:
            result.append(([name], list(run)))
    return [(", ".join(compact(name for name in dict.fromkeys(names) if name)), run) for names, run in result]


def _path(node: fx.Node) -> list[str]:
    """The modules a node ran in, outermost first, without the model itself."""
    return [name for name in node.meta.get("modules", ()) if name]


def _module(node: fx.Node) -> str:
    return next(reversed(_path(node)), "")


# ---- boxes ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads what a box says off a space and its explanation."""

    def __init__(self, space: Space, explanation: Explanation) -> None:
        self.space, self.graph = space, space.graph
        self.family_of = np.full(space.solution.size, FROZEN, np.int64)
        for k, family in enumerate(space.families):
            self.family_of[family.classes] = k
        self.rows: dict[str, list[AxisRow]] = {}
        for row in explanation.axes:
            self.rows.setdefault(row.tensor, []).append(row)

    def box(self, node: fx.Node) -> Box:
        values = tuple(u.meta["value"] for u in node.all_input_nodes) if node.op == "output" else node.meta["value"]
        box = Box(self._title(node), self._shape(values), _module(node), node.op)
        box.shares, why = self._shares(node)
        read = [str(u.target) for u in node.all_input_nodes if u.op == "get_attr"]
        box.parameters = [(name, self.rows[name]) for name in read if name in self.rows]
        box.notes = [describe(node), *([f"module {box.module}"] if box.module else []), f"shape {box.shape or '-'}"]
        box.notes += [f"family {name}" for name in self._names(box.shares)]
        box.notes += [f"frozen: {text}" for text in why]
        for _, rows in box.parameters:
            box.notes += [_axis_note(row) for row in rows]
        return box

    def merged(self, name: str, run: Sequence[fx.Node]) -> Box:
        """One box for several nodes: the shape is that of the last, the shares are those of all together."""
        inside = [self.box(node) for node in run]
        total: Counter[int] = Counter()
        for box in inside:
            total.update(box.shares)
        kinds = Counter(box.title for box in inside).most_common()
        notes = [f"{name}: {len(run)} calls", ", ".join(f"{many} {title}" for title, many in kinds)]
        notes += [f"family {family}" for family in self._names(total)]
        frozen = Counter(note for box in inside for note in box.notes if note.startswith("frozen: "))
        notes += [f"{many} calls {text}" for text, many in frozen.most_common(8)]
        return Box(name, inside[-1].shape, name, "module", len(run), dict(total), [], notes)

    def _names(self, shares: Iterable[int]) -> list[str]:
        families = self.space.families
        return [f"{families[k].name} ({families[k].size} units)" for k in shares if k != FROZEN]

    def _title(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return f"input {node.target}"
        return "output" if node.op == "output" else op_name(node.target).removeprefix("aten.")

    def _shape(self, value: object) -> str:
        if isinstance(value, tuple):
            return ", ".join(filter(None, (self._shape(part) for part in value[:3]))) + (", ..." if value[3:] else "")
        if not isinstance(value, Value) or value.dtype is None:
            return ""
        pairs = zip(value.shape, value.symbols, strict=True)
        sizes = [str(size) if symbol is None else self._symbol(symbol) for size, symbol in pairs]
        kind = "" if value.dtype.is_floating_point else f" {str(value.dtype).removeprefix('torch.')}"
        return ("\u00d7".join(sizes) or "scalar") + kind

    def _symbol(self, symbol: str) -> str:
        """``N`` where the batch size is the only thing that varies."""
        hints = list(self.graph.symbol_hints)
        return symbol.replace(hints[0], "N") if len(hints) == 1 else symbol

    def _shares(self, node: fx.Node) -> tuple[dict[int, float], list[str]]:
        """How much of a value each family has, every labelled factor counting once; and why the frozen part stays."""
        label = self.space.labels.get(node)
        parts = label if isinstance(label, tuple) else (label,) if isinstance(label, Label) else ()
        shares: dict[int, float] = {}
        why: dict[str, None] = {}
        for factor in (f for part in parts for axis in part.axes for f in axis):
            if factor.ids is None:
                if factor.origin is not None:
                    why.setdefault(str(factor.origin))
                continue
            classes = self.space.solution.class_of[factor.ids]
            leaves = self.space.leaves[classes]
            owners = np.where(leaves >= 0, self.family_of[leaves], FROZEN)
            held = np.flatnonzero((owners == FROZEN).all(axis=1))
            own = np.concatenate([owners[owners != FROZEN], owners[held, 0]])
            for k, many in zip(*np.unique(own, return_counts=True), strict=True):
                shares[int(k)] = shares.get(int(k), 0.0) + float(many) / len(own)
            if len(held):
                why.setdefault(str(self.space.solution.why(int(classes[held[0]]))))
        return shares, list(why)


def _axis_note(row: AxisRow) -> str:
    if row.plain:
        return f"{row.name}: {row.size}, {row.reason}"
    free = f"{row.removable} of {row.size} in {', '.join(row.families)}" if row.families else ""
    held = f"frozen, {row.reason}" + (f" ({row.source})" if row.source else "") + f"; remedy: {row.remedy}"
    return f"{row.name}: " + "; ".join(text for text in (free, held if row.removable < row.size else "") if text)
