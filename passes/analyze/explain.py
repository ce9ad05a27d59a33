"""`explain`: for every axis of every parameter, the families that cut it, or why it stays and what would free it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from coppice.core.cost import METRICS
from coppice.core.errors import UsageError
from coppice.core.graph import Graph
from coppice.core.labels import Ids
from coppice.core.space import Space
from coppice.passes.analyze.remedy import Remedies
from coppice.passes.space.build import Roles, build_space

WINDOW = "is a position in the kernel's window"
SINGLE = "has a single position"
UNUSED = "is not used by forward"
INTEGER = "holds no floating point numbers"


@dataclass(frozen=True)
class AxisRow:
    """One axis of one parameter: ``removable`` of its ``size`` positions belong to ``families``.

    Where some do not, ``reason``, ``source`` and ``remedy`` are those of the first that is frozen. ``plain`` marks an
    axis that never had units: a kernel window, a single position.
    """

    tensor: str
    axis: int
    role: str
    size: int
    families: tuple[str, ...]
    removable: int
    reason: str = ""
    source: str = ""
    remedy: str = ""
    plain: bool = False

    @property
    def name(self) -> str:
        """``conv1.weight[out]``."""
        return f"{self.tensor}[{self.role}]"

    @property
    def label(self) -> str:
        """The name, with how many positions are frozen where it is not all of them."""
        return f"{self.name} ({self.size - self.removable} of {self.size})" if self.removable else self.name


@dataclass(frozen=True)
class FamilyRow:
    """One family: how many units, which widths are allowed, what it cuts, and the share of each cost that leaves with
    all of its units but the least allowed number."""

    name: str
    size: int
    least: int
    round_to: int
    slices: tuple[str, ...]
    saves: dict[str, float]


@dataclass(frozen=True)
class SegmentRow:
    """One segment: the one it lies in (or ""), where it joins the rest, its tensors, and the share of each cost that
    leaves with it alone."""

    name: str
    parent: str
    source: str
    tensors: int
    saves: dict[str, float]


@dataclass(frozen=True)
class Explanation:
    """What can leave a model, what cannot, and why. ``axes`` has one row for every axis of every parameter.

    ``segments`` are the parts that can be erased whole, ``choices`` the parallel ones among them, of which one stays.

    ``costs`` are the full model's, ``least`` those of the smallest subnet; ``notes`` are the frontend's remarks.
    """

    model: str
    axes: tuple[AxisRow, ...]
    families: tuple[FamilyRow, ...]
    segments: tuple[SegmentRow, ...]
    choices: dict[str, tuple[str, ...]]
    costs: dict[str, float]
    least: dict[str, float]
    tied: dict[str, str]
    notes: tuple[str, ...]
    space: Space | None = field(default=None, repr=False, compare=False)
    """What was explained; `svg` draws its graph."""

    def frozen(self) -> list[AxisRow]:
        """The rows that hold frozen positions, without the axes that never had units."""
        return [row for row in self.axes if row.removable < row.size and not row.plain]

    def reasons(self) -> list[tuple[AxisRow, list[AxisRow]]]:
        """The frozen rows by reason and source, the most frequent first; each with one row to stand for it."""
        groups: dict[tuple[str, str, str], list[AxisRow]] = {}
        for row in self.frozen():
            groups.setdefault((row.reason, row.source, row.remedy), []).append(row)
        return [(rows[0], rows) for rows in sorted(groups.values(), key=len, reverse=True)]

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        data = asdict(replace(self, space=None))
        del data["space"]
        return data

    def svg(self) -> str:
        """A self-contained SVG picture of the graph: boxes coloured by family, frozen ones grey with their reasons."""
        from coppice.passes.analyze.svg import svg

        assert self.space is not None
        self.space.graph.expect(self.space.version, "this explanation")
        return svg(self.space, self)

    def verdict(self) -> str:
        """One sentence: how far the model can shrink, or why it cannot."""
        if not self.families:
            return (
                f"{self.model}: nothing can leave. Every axis of its {len({r.tensor for r in self.axes})} parameters "
                "is frozen, for the reasons below; free one of them and a family appears."
            )
        shares = ", ".join(f"{m} to {100 * self.least[m] / max(self.costs[m], 1):.3g}%" for m in METRICS)
        return f"{self.model}: {_count(len(self.families), 'family', 'families')}; the smallest subnet brings {shares}."

    def summary(self, every: bool = False) -> str:
        """Text for people: families, then frozen axes by reason. ``every``: one line for each, nothing folded."""
        lines = [self.verdict(), *(f"note: {note}" for note in self.notes)]
        if self.families:
            lines += ["", "families"]
            named = [(f.name, f.size) for f in self.families]
            folded = [(name, size) for name, size, _ in fold(self.families)]
            lines += [f"  {name}: {size} units" for name, size in (named if every else folded)]
        if self.segments:
            lines += ["", "segments that can be erased whole"]
            names = [segment.name for segment in self.segments]
            lines += [f"  {name}" for name in (names if every else compact(names))]
        if self.frozen():
            lines += ["", "frozen axes"]
        for first, rows in self.reasons():
            lines.append(f"  {first.reason}" + (f" at {first.source}" if first.source else ""))
            lines.append(f"    remedy: {first.remedy}")
            names = [row.label for row in rows]
            lines += [f"    {name}" for name in (names if every else compact(names))]
        return "\n".join(lines)


def fold(families: Sequence[FamilyRow]) -> list[tuple[str, int, list[FamilyRow]]]:
    """(name, size, families), with those of one size whose names differ only in numbers under one name."""
    by_size: dict[int, dict[str, FamilyRow]] = {}
    for family in families:
        by_size.setdefault(family.size, {})[family.name] = family
    return [
        (text, size, [named[name] for name in names])
        for size, named in by_size.items()
        for text, names in _folded(named)
    ]


def fold_segments(segments: Sequence[SegmentRow]) -> list[tuple[str, list[SegmentRow]]]:
    """(name, segments), with those whose names differ only in numbers under one name."""
    named = {segment.name: segment for segment in segments}
    return [(text, [named[name] for name in names]) for text, names in _folded(named)]


def compact(names: Iterable[str]) -> list[str]:
    """Fold names that differ only in whole numbers between dots: ``layers.{0-11}.fc1.weight[out]``."""
    return [text for text, _ in _folded(names)]


def _folded(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    groups: dict[tuple[str, ...], dict[tuple[int, ...], str]] = {}
    for name in names:
        parts = re.split(r"(?<![^.])(\d+)(?=[.\[#]|$)", name)
        groups.setdefault(tuple(parts[::2]), {})[tuple(map(int, parts[1::2]))] = name
    result: list[tuple[str, list[str]]] = []
    for words, members in groups.items():
        columns = [sorted(set(column)) for column in zip(*members, strict=True)]
        if len(members) == 1 or math.prod(map(len, columns)) != len(members):
            result += [(name, [name]) for name in members.values()]
            continue
        braces = [str(c[0]) if len(c) == 1 else "{" + _ranges(c) + "}" for c in columns]
        result.append(("".join(a + b for a, b in zip(words, [*braces, ""], strict=True)), list(members.values())))
    return result


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3,7`` for the ascending numbers 0, 1, 2, 3 and 7."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def explain(target: Graph | Space) -> Explanation:
    """Explain a space, or the default space of a graph: every parameter axis with its families or its reason.

    Raises `UnsupportedError` for a model without parameters.
    """
    if not isinstance(target, (Graph, Space)):
        raise UsageError(
            f"expected a Graph or a Space, got {type(target).__name__}",
            place="explain",
            remedy="call coppice.trace(model, example_inputs) first",
        )
    space = target if isinstance(target, Space) else build_space(target)
    graph = space.graph
    graph.expect(space.version, "this space")
    full = space.cost(space.full())
    least = space.cost(np.array([[f.widths[0] for f in space.families]], np.int64).reshape(1, -1))
    return Explanation(
        model=graph.name,
        axes=tuple(_Axes(space).rows()),
        families=tuple(_families(space)),
        segments=tuple(_segments(space)),
        choices={choice.name: choice.branches for choice in space.segments.choices},
        costs={m: float(full[m][0]) for m in METRICS},
        least={m: float(least[m][0]) for m in METRICS},
        tied=dict(graph.aliases),
        notes=tuple(graph.notes),
        space=space,
    )


def _segments(space: Space) -> Iterable[SegmentRow]:
    full, costs = space.cost(space.full()), space.cost_without_each()
    for k, segment in enumerate(space.segments):
        saves = {m: float((full[m][0] - costs[m][k]) / max(full[m][0], 1)) for m in METRICS}
        yield SegmentRow(segment.name, segment.parent, segment.source, len(segment.tensors), saves)


def _families(space: Space) -> Iterable[FamilyRow]:
    sizes = np.array([f.size for f in space.families], np.int64)
    alone = np.repeat(sizes[None, :], len(sizes) + 1, axis=0)
    for k, family in enumerate(space.families):
        alone[k + 1, k] = family.widths[0]
    costs = space.cost(alone)
    for k, family in enumerate(space.families):
        saves = {m: float(1 - costs[m][k + 1] / costs[m][0]) if costs[m][0] else 0.0 for m in METRICS}
        yield FamilyRow(
            family.name, family.size, family.widths[0], family.round_to, tuple(map(str, family.slices)), saves
        )


class _Axes:
    """Reads the rows of `Explanation` off a space."""

    def __init__(self, space: Space) -> None:
        self.space, self.graph = space, space.graph
        self.roles = Roles(space.graph)
        self.family_of = np.full(space.solution.size, -1, np.int64)
        for k, family in enumerate(space.families):
            self.family_of[family.classes] = k
        self.remedy = Remedies(self.graph)
        readers = {str(n.target): n.users for n in self.graph.fx.nodes if n.op == "get_attr"}
        self.read_at = {
            name: next((s for user in users if (s := str(user.meta.get("source", "")))), "")
            for name, users in readers.items()
        }

    def rows(self) -> Iterable[AxisRow]:
        for name, tensor in self.graph.parameters().items():
            axes = self.space.tensor_axes.get(name)
            for k, size in enumerate(tensor.shape):
                yield self._row(name, k, size, None if axes is None else axes[k])
        known = {*self.graph.tensors, *self.graph.aliases}
        for name, unused in self.graph.model.named_parameters() if self.graph.model is not None else ():
            if name not in known:
                remedy = "delete the parameter, or use it in forward"
                for k, size in enumerate(unused.shape):
                    yield AxisRow(name, k, str(k), size, (), 0, UNUSED, "", remedy)

    def _row(self, name: str, k: int, size: int, ids: Ids | None) -> AxisRow:
        role, source = self.roles(name, k), self.read_at.get(name, "")
        if role == "window":
            return AxisRow(name, k, role, size, (), 0, WINDOW, source, "nothing: it has no units", plain=True)
        if ids is None:
            why = SINGLE if size == 1 else INTEGER
            return AxisRow(name, k, role, size, (), 0, why, source, "nothing: it has no units", plain=True)
        classes = self.space.solution.class_of[ids]
        leaves = self.space.leaves[classes]
        owners = np.where(leaves >= 0, self.family_of[leaves], -1)
        free = (owners >= 0).any(axis=1)
        families = tuple(self.space.families[f].name for f in np.unique(owners[owners >= 0]).tolist())
        if free.all():
            return AxisRow(name, k, role, size, families, size, source=source)
        why_not = self.space.solution.why(int(classes[np.flatnonzero(~free)[0]]))
        return AxisRow(
            name, k, role, size, families, int(free.sum()),
            why_not.text, why_not.source or source, self.remedy(why_not, source),
        )  # fmt: skip


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
