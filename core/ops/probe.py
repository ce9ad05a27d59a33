"""Ops without a row get one by experiment: the op is run on inputs drawn for it, and what it does is what it is.

Found are axes of arguments and results whose positions go one with the other, as in elementwise and per-channel ops.
Everything else is frozen with what was seen. Results are kept by op, literal arguments, shapes and dtypes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import fx

from coppice.core.calls import Call, op_name
from coppice.core.graph import FLOATING, Value, is_tensor
from coppice.core.labels import POISON, UNKNOWN, Axis, Carry, Flow, Label, Reason, free, labelled, same
from coppice.core.ops.trials import (
    MOST_NUMBERS,
    Bench,
    Case,
    Place,
    Refused,
    Slot,
    Tie,
    Undecided,
    Unfit,
    agree,
    cut,
    follow,
    holds,
    shorter,
)

NO_ROW = "reaches `{op}`, which the op table does not know"
FOUND = "reaches `{op}`, which {found}"
REMEDY = "add a row to the op table, or leave this op out of the pruned part"
Labels = Callable[[Flow, Call], Label | tuple[Label, ...]]


@dataclass(frozen=True)
class Finding:
    """The ties of one case, and why the other axes that were examined must stay."""

    case: Case
    ties: tuple[Tie, ...]
    held: dict[Place, str] = field(default_factory=dict)


def probe(flow: Flow, call: Call) -> Labels | str:
    """A rule for the labels of a call whose op has no row, or the reason why there is none."""
    nodes = call.node.all_input_nodes
    units = any(labelled(axis) for n in nodes for part in _parts(flow, n) for axis in part.axes)
    if not isinstance(call.target, torch._ops.OpOverload) or not units:
        return NO_ROW.format(op=op_name(call.target))
    try:
        finding = _investigate(_case(flow, call, nodes))
    except Undecided as undecided:
        return FOUND.format(op=op_name(call.target), found=undecided)
    return partial(_labels, finding)


def _parts(flow: Flow, node: fx.Node) -> tuple[Label, ...]:
    label = flow.labels.get(node, ())
    return label if isinstance(label, tuple) else (label,)


def _case(flow: Flow, call: Call, nodes: list[fx.Node]) -> Case:
    schema = call.target._schema  # type: ignore[union-attr]
    if schema.is_mutable:
        raise Undecided("changes its input")
    if torch.Tag.nondeterministic_seeded in call.target.tags:  # type: ignore[union-attr]
        raise Undecided("draws random numbers")
    made = call.node.meta["value"]
    results = made if isinstance(made, tuple) else (made,)
    if not all(isinstance(v, Value) and v.dtype is not None for v in results) or not all(map(is_tensor, nodes)):
        raise Undecided("takes or returns something that is no tensor")
    values = [n.meta["value"] for n in nodes]
    if any(v.dtype.is_complex for v in (*values, *results)) or any(0 in v.shape for v in values):
        raise Undecided("takes or returns complex numbers or nothing at all")
    leaves, spec = pytree.tree_flatten((tuple(call.node.args), dict(call.node.kwargs)))
    slots = tuple(Slot(nodes.index(leaf)) if isinstance(leaf, fx.Node) else leaf for leaf in leaves)
    names = {node: name for name, node in call.tensors()}
    sizes = {s for n, v in zip(nodes, values, strict=True) for s, a in zip(v.shape, flow.of(n).axes, strict=True)
             if labelled(a)}  # fmt: skip
    case = Case(
        target=call.target,
        text=f"{spec} {slots!r}",
        names=tuple(names.get(n, f"argument {i}") for i, n in enumerate(nodes)),
        tensors=tuple((v.shape, v.dtype) for v in values),
        results=tuple(v.shape for v in results),
        examine=frozenset((i, k) for i, v in enumerate(values) for k, s in enumerate(v.shape) if s in sizes and s > 1),
        leaves=slots,
        spec=spec,
    )
    if case.numbers > MOST_NUMBERS:
        raise Undecided(f"has tensors of {case.numbers} numbers, too many to be tried on sample inputs")
    return case


# ---- experiments -------------------------------------------------------------------------------------------------


@cache
def _decide(case: Case) -> Finding | str:
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _experiment(case)
    except Undecided as undecided:
        return str(undecided)


def _investigate(case: Case) -> Finding:
    found = _decide(case)
    if isinstance(found, str):
        raise Undecided(found)
    return found


def _experiment(case: Case) -> Finding:
    """Tried thoroughly, at shorter axes where the call is large, and then again at its own size and precision."""
    small = shorter(case)
    finding = _tried(Bench(small, _widest(small)))
    looks = [Bench(case, _widest(case), quick=True)] if small is not case else []
    if _widest(case) is not None and {dtype for _, dtype in case.tensors if dtype in FLOATING} != {torch.float64}:
        looks.append(Bench(case, None, quick=True))
    for bench in looks:
        if _runs(bench):
            finding = _both(finding, _tried(bench))
    return replace(finding, case=case)


def _widest(case: Case) -> torch.dtype | None:
    """fp64, or None where the op only takes the precision it was traced at."""
    return torch.float64 if _runs(Bench(case, torch.float64)) else None


def _tried(bench: Bench) -> Finding:
    samples = [(kind, *bench.baseline(kind)) for kind in bench.kinds]
    found = _ties(bench, samples)
    for _, inputs, base in samples:
        if not agree(bench.run(inputs), base):
            raise Undecided("gives other results when it is called again later")
    return found


def _runs(bench: Bench) -> bool:
    try:
        bench.run(bench.inputs(0))
    except Refused:
        return False
    return True


def _both(one: Finding, two: Finding) -> Finding:
    """What holds in both."""
    ties = tuple(tie for tie in one.ties if tie in two.ties)
    lost = {p: "does not do the same at every size and precision" for tie in one.ties for p in tie.inputs
            if tie not in two.ties}  # fmt: skip
    return Finding(one.case, ties, {**lost, **two.held, **one.held})


def _ties(bench: Bench, samples: list[tuple[int, list[torch.Tensor], tuple[torch.Tensor, ...]]]) -> Finding:
    held: dict[Place, str] = {}
    moves: dict[Place, dict[int, int]] = {}
    for place in sorted(bench.case.examine):
        try:
            moves[place] = follow(bench, place, samples)
        except Unfit:
            raise
        except Undecided as undecided:
            held[place] = str(undecided)
    good: list[Tie] = []
    for tie in _joined(bench.case, moves):
        try:
            cut(bench, [tie], samples)
            good.append(tie)
        except Unfit:
            raise
        except Undecided as undecided:
            held |= {place: str(undecided) for place in tie.inputs}
    if len(good) > 1:
        try:
            cut(bench, good, samples)
        except Unfit:
            raise
        except Undecided as undecided:
            held |= {place: str(undecided) for tie in good for place in tie.inputs}
            good = []
    return Finding(bench.case, tuple(good), held)


def _joined(case: Case, moves: dict[Place, dict[int, int]]) -> list[Tie]:
    """Arguments' axes that move the same axis of a result, put together."""
    groups: list[tuple[set[Place], set[Place]]] = []
    for place, found in moves.items():
        inputs, results = {place}, set(found.items())
        apart = []
        for group in groups:
            if group[1] & results:
                inputs |= group[0]
                results |= group[1]
            else:
                apart.append(group)
        groups = [*apart, (inputs, results)]
    return [Tie(case.results[min(o)[0]][min(o)[1]], tuple(sorted(i)), tuple(sorted(o))) for i, o in groups]


# ---- labels ------------------------------------------------------------------------------------------------------


def _labels(finding: Finding, flow: Flow, call: Call) -> Label | tuple[Label, ...]:
    operands = [flow.of(node) for node in call.node.all_input_nodes]
    origin = Reason(
        f"meets positions that `{op_name(call.target)}` makes of no unit", call.node.name, call.source, REMEDY
    )
    axes: list[list[Axis]] = [[free(size, origin) for size in shape] for shape in finding.case.results]
    for (index, k), found in sorted(finding.held.items()):
        flow.freeze_axis(operands[index].axes[k], FOUND.format(op=op_name(call.target), found=found), REMEDY)
    for tie in finding.ties:
        tied = flow.tie([operands[index].axes[k] for index, k in tie.inputs])
        for r, j in tie.results:
            axes[r][j] = tuple(t.factor(partial(_carried, finding.case, tie, (r, j))) for t in tied)
    made = tuple(Label(tuple(own), all(label.static for label in operands)) for own in axes)
    return made if isinstance(call.node.meta["value"], tuple) else made[0]


def _carried(case: Case, tie: Tie, result: Place, carries: tuple[Carry, ...]) -> Carry:
    columns, inverse = np.unique(
        np.nan_to_num(np.stack(carries), nan=_OPEN, posinf=np.inf), axis=1, return_inverse=True
    )
    values = [_carry(case, tie, result, tuple(column)) for column in columns.T.tolist()]
    return np.array(values)[inverse.reshape(-1)]


_OPEN = 1e99  # stands for UNKNOWN where NaN could not be compared


@cache
def _carry(case: Case, tie: Tie, result: Place, column: tuple[float, ...]) -> float:
    if any(np.isinf(value) for value in column):
        return POISON
    known: dict[int, float] = {}
    for (index, _), value in zip(tie.inputs, column, strict=True):
        known[index] = value if known.get(index, value) == value else _OPEN
    known = {index: value for index, value in known.items() if value != _OPEN}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = shorter(case)
            first = holds(Bench(small, _widest(small)), tie, known, result)
            if small is case or np.isinf(first):
                return first
            return same([first, holds(Bench(case, _widest(case), quick=True), tie, known, result)])
    except Undecided:
        return UNKNOWN
