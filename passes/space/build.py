"""`build_space`: solve the facts of a graph, gather families, name them, and price every config."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import fx, nn

from coppice.core.errors import UnsupportedError, UsageError
from coppice.core.graph import Graph
from coppice.core.labels import RESIDUAL, Ids, Reason
from coppice.core.names import unknown_name
from coppice.core.ops import Op, lookup
from coppice.core.solve import Solution, solve
from coppice.core.space import Family, Frozen, Slice, Space
from coppice.passes.analyze.labels import Analysis, analyze
from coppice.passes.analyze.remedy import Remedies
from coppice.passes.space.families import signatures
from coppice.passes.space.price import price
from coppice.passes.space.segments import find_segments

Layer = str | type[nn.Module] | nn.Module | re.Pattern[str]
Ignore = Layer | Iterable[Layer]
Bound = int | float | tuple[int | float, int | float]


def build_space(
    graph: Graph,
    *,
    ignore: Ignore = (),
    round_to: int = 1,
    bounds: Mapping[str, Bound] | None = None,
    residual: str = "exact",
    analysis: Analysis | None = None,
) -> Space:
    """The space of subnets of ``graph``.

    ``ignore`` names what keeps all its outputs: parameter or module names, glob patterns, compiled regexes, module
    types or instances. ``round_to`` makes the channels of every cut axis a multiple of it. ``bounds`` maps family or
    module names to the least width that may stay (an int, or a fraction of the family), or to (least, most).
    ``residual`` decides over units that a layer norm or RMS norm averages over: ``"exact"`` lets them leave and keeps
    the original count in the average, ``"renormalise"`` averages over what stays (the reference then does, too), and
    ``"freeze"`` keeps them. A given ``analysis`` has its own.

    Raises `UnsupportedError` for a model without parameters, `UsageError` for names that match nothing.
    """
    if not isinstance(graph, Graph):
        raise UsageError(
            f"expected a Graph, got {type(graph).__name__}",
            place="build_space",
            remedy="coppice.trace(model, inputs) first",
        )
    if not graph.parameters():
        raise UnsupportedError(
            "the model has no parameters that its output depends on",
            place=graph.name,
            remedy="pass a model with weights, or check that forward uses them",
        )
    if not isinstance(round_to, int) or round_to < 1:
        raise UsageError(
            f"round_to is {round_to!r}", place="build_space", remedy="give a positive whole number, e.g. 8"
        )
    layers = _listed(ignore)
    if residual not in RESIDUAL:
        raise unknown_name("residual mode", residual, RESIDUAL)
    analysis = analysis or analyze(graph, residual)
    graph.expect(analysis.version, "the analysis")
    flow = analysis.flow
    tensor_ids = [ids for axes in analysis.axes.values() for ids in axes if ids is not None]
    solution = solve(flow, tensor_ids, _ignored(graph, analysis, layers))
    leaves = solution.leaves
    roles = Roles(graph)
    families = _families(analysis, solution, leaves, roles, round_to)
    families = _bounded(families, bounds or {})
    classes = [family.classes for family in families]
    segments = find_segments(graph, analysis.labels, solution, leaves, classes)
    return Space(
        graph=graph,
        version=graph.version,
        families=families,
        frozen=_frozen(analysis, solution, roles),
        solution=solution,
        tensor_axes=analysis.axes,
        masked=analysis.masked,
        leaves=leaves,
        segments=segments,
        costs=price(graph, flow, analysis.axes, solution, leaves, classes, segments),
        labels=dict(analysis.labels),
        folds=dict(flow.folds),
        residual=flow.residual,
        options={
            "round_to": round_to,
            "ignore": [str(entry) for entry in layers],
            "residual": flow.residual,
        },
    )


# ---- families ------------------------------------------------------------------------------------------------------


def _families(analysis: Analysis, solution: Solution, leaves: Ids, roles: Roles, round_to: int) -> tuple[Family, ...]:
    places = [(name, k, ids) for name, axes in analysis.axes.items() for k, ids in enumerate(axes) if ids is not None]
    last = np.iinfo(np.int64).max
    first = np.full(solution.size, last)  # where a leaf is first seen, as (axis, position) in one number
    made = np.zeros(solution.size, bool)
    width = 1 + max((len(ids) for _, _, ids in places), default=0)
    parameters = analysis.graph.parameters()  # what only buffers make is no unit: nothing about it was learned
    for order, (name, _, ids) in enumerate(places):
        for column in leaves[solution.class_of[ids]].T:
            live = np.flatnonzero(column >= 0)
            np.minimum.at(first, column[live], order * width + live)
            if name in parameters:
                made[column[live[analysis.masked[ids[live]]]]] = True
    units = np.flatnonzero(made & (first < last))
    units = units[np.argsort(first[units], kind="stable")]
    signature = signatures(solution, leaves, _distinct_axes(analysis))[units]
    _, start, group = np.unique(signature, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(start))[group]  # families in order of their first unit
    family_of = np.full(solution.size, -1)
    family_of[units] = rank
    sizes = np.bincount(rank, minlength=len(start))
    members = np.split(units[np.argsort(rank, kind="stable")], np.cumsum(sizes)[:-1])
    slices: list[list[Slice]] = [[] for _ in start]
    for name, k, ids in places:
        rows = leaves[solution.class_of[ids]]
        owner = np.where(rows >= 0, family_of[rows], -1)
        for f in np.unique(owner[owner >= 0]).tolist():
            hit = (owner == f).any(axis=1)
            masked = bool(analysis.masked[ids[hit]].any())
            slices[f].append(Slice(name, k, roles(name, k), masked, max(1, int(hit.sum()) // int(sizes[f]))))
    taken: set[str] = set()
    return tuple(
        Family(_unique(_family_name(own), taken), members[f], tuple(own), 1, 0, round_to)
        for f, own in enumerate(slices)
    )


def _distinct_axes(analysis: Analysis) -> list[Ids]:
    """Every labelled run of variables once: along tensors, and along values that differ from all before."""
    seen: dict[int, Ids] = {}
    for axes in analysis.axes.values():
        for ids in axes:
            if ids is not None:
                seen[id(ids)] = ids
    for label in analysis.labels.values():
        for part in label if isinstance(label, tuple) else (label,):
            for axis in part.axes:
                for factor in axis:
                    if factor.ids is not None:
                        seen[id(factor.ids)] = factor.ids
    return list(seen.values())


def _family_name(slices: Sequence[Slice]) -> str:
    """The module that makes the units: that of the first weight they are the outputs of."""
    made = [s for s in slices if s.masked]
    best = next((s for s in made if s.role in ("out", "feature") and s.tensor.endswith("weight")), None)
    best = best or next((s for s in made if s.role == "out"), None) or (made or list(slices))[0]
    return best.tensor.rpartition(".")[0] or best.tensor


def _unique(name: str, taken: set[str]) -> str:
    candidate, n = name, 1
    while candidate in taken:
        n += 1
        candidate = f"{name}#{n}"
    taken.add(candidate)
    return candidate


class Roles:
    """What each axis of each tensor means, from the first op with a row that reads it: ``out``, ``in``, ``channel``."""

    def __init__(self, graph: Graph) -> None:
        self._reader: dict[str, tuple[Op, fx.Node, fx.Node]] = {}
        for node in graph.fx.nodes:
            if node.op == "get_attr":
                readers = ((op, user, node) for user in node.users if (op := lookup(user.target)) is not None)
                self._reader.setdefault(str(node.target), next(readers, None))  # type: ignore[arg-type]

    def __call__(self, tensor: str, axis: int) -> str:
        reader = self._reader.get(tensor)
        return str(axis) if reader is None else reader[0].role(reader[1], reader[2], axis)


# ---- options -------------------------------------------------------------------------------------------------------


def _listed(ignore: Ignore) -> list[Layer]:
    if isinstance(ignore, (str, type, nn.Module, re.Pattern)):
        return [ignore]
    try:
        return list(ignore)
    except TypeError:
        raise UsageError(
            f"{ignore!r} is no list of layers", place="ignore", remedy="give a name, a glob, or a list of them"
        ) from None


def _ignored(graph: Graph, analysis: Analysis, ignore: Sequence[Layer]) -> list[tuple[Ids, Reason]]:
    """Freeze the outputs of what the user wants left alone: every masked axis of the matching tensors."""
    result: list[tuple[Ids, Reason]] = []
    for entry in ignore:
        names = _matching(graph, entry)
        for name in names:
            for ids in analysis.axes.get(graph.canonical(name), ()):
                if ids is not None and analysis.masked[ids].any():
                    why = Reason(f"is ignored on request ({_entry_name(entry)})", remedy="take it out of `ignore`")
                    result.append((ids[analysis.masked[ids]], why))
    return result


def _entry_name(entry: Any) -> str:
    if isinstance(entry, re.Pattern):
        return str(entry.pattern)
    return entry.__name__ if isinstance(entry, type) else entry if isinstance(entry, str) else type(entry).__name__


def _matching(graph: Graph, entry: Any) -> list[str]:
    tensors = [*graph.tensors, *graph.aliases]
    modules = {name for tensor in tensors for name in _parents(tensor)}
    if isinstance(entry, (type, nn.Module)):
        owner = dict(graph.model.named_modules(remove_duplicate=False)) if graph.model is not None else {}
        hits = {n for n, m in owner.items() if (m is entry if isinstance(entry, nn.Module) else isinstance(m, entry))}
    elif isinstance(entry, re.Pattern):
        hits = {n for n in (*tensors, *modules) if entry.search(n)}
    elif isinstance(entry, str):
        pattern = re.compile(re.escape(entry).replace(r"\*", ".*").replace(r"\?", "."))
        hits = {n for n in (*tensors, *modules) if pattern.fullmatch(n)}
    else:
        raise UsageError(
            f"{entry!r} cannot name a layer",
            place="ignore",
            remedy="give a name, a glob, a regex, a module or its type",
        )
    if not hits:
        raise unknown_name("layer or parameter", _entry_name(entry), sorted({*tensors, *modules}))
    return [t for t in tensors if t in hits or any(parent in hits for parent in _parents(t))]


def _parents(tensor: str) -> list[str]:
    parts = tensor.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def _bounded(families: tuple[Family, ...], bounds: Mapping[str, Bound]) -> tuple[Family, ...]:
    named = {f.name: f for f in families}
    for name in bounds:
        if not any(name in (f, f.split("#")[0]) for f in named):
            raise unknown_name("family", name, named)
    result: list[Family] = []
    for family in families:
        bound = bounds.get(family.name, bounds.get(family.name.split("#")[0]))
        low, high = bound if isinstance(bound, tuple) else (bound, None)
        least = 1 if low is None else _width(low, family, up=True)
        most = 0 if high is None else _width(high, family, up=False)
        if most and most < least:
            raise UsageError(f"the bounds {bound} leave no width", place=f"family {family.name}")
        result.append(Family(family.name, family.classes, family.slices, least, most, family.round_to))
    return tuple(result)


def _width(bound: int | float, family: Family, up: bool) -> int:
    if isinstance(bound, bool) or not isinstance(bound, (int, float)):
        raise UsageError(
            f"{bound!r} is no width", place=f"bound of {family.name}", remedy="give a number of units, or a fraction"
        )
    exact = bound * family.size if isinstance(bound, float) else bound
    width = int(np.ceil(exact - 1e-9) if up else np.floor(exact + 1e-9))
    if not 1 <= width <= family.size:
        raise UsageError(f"a bound of {bound} is outside 1..{family.size}", place=f"family {family.name}")
    return width


# ---- frozen --------------------------------------------------------------------------------------------------------


def _frozen(analysis: Analysis, solution: Solution, roles: Roles) -> tuple[Frozen, ...]:
    """One entry per axis of a parameter that holds frozen positions, with the first reason found for it."""
    result: list[Frozen] = []
    remedy = Remedies(analysis.graph)
    for name, axes in analysis.axes.items():
        for k, ids in enumerate(axes):
            if ids is None:
                continue
            classes = solution.class_of[ids]
            held = np.flatnonzero(solution.frozen[classes])
            named = roles(name, k)
            if not len(held) or named == "window":
                continue
            why = solution.why(int(classes[held[0]]))
            facts = (why.text, why.source, len(ids), len(held), remedy(why), why.node)
            result.append(Frozen(f"{name}[{named}]", *facts))
    return tuple(result)
