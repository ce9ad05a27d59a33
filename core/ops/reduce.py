"""Ops that fold an axis into one number, or compare positions along it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import fx

from coppice.core.calls import Call
from coppice.core.graph import value_of
from coppice.core.labels import Axis, Flow, Label, axis_size, forget, free, keep_zero
from coppice.core.ops import Average, row
from coppice.core.ops.insert import insert


def _dims(call: Call, rank: int) -> list[int]:
    dim = call.get("dim")
    if dim is None or dim == []:
        return list(range(rank))
    return [d % rank for d in ([dim] if isinstance(dim, int) else dim)] if rank else []


def _reduce(flow: Flow, call: Call, additive: bool) -> Label:
    x = flow.of(call.tensors()[0][1])
    dims = _dims(call, len(x.axes))
    keep = len(call.out.shape) == len(x.axes) and bool(dims)
    axes: list[Axis] = []
    for k, axis in enumerate(x.axes):
        if k not in dims:
            axes.append(keep_zero(axis))
            continue
        for factor in axis:
            if factor.ids is None or factor.carry is None:
                continue
            if additive:
                flow.freeze(factor.ids[factor.carry != 0], f"is not zero where `{call.node.name}` sums over it")
            else:
                flow.freeze(
                    factor.ids, f"is reduced over by `{call.node.name}`, whose result depends on how many there are"
                )
        if keep:
            axes.append(())
    return Label(tuple(axes), x.static)


def _mean(flow: Flow, call: Call) -> Label:
    """A mean that keeps its count is a sum: a zero adds nothing."""
    return _reduce(flow, call, additive=flow.residual != "freeze")


def _meant(call: Call, of: Callable[[fx.Node], Label]) -> tuple[Axis, ...]:
    x = of(call["self"])
    return tuple(x.axes[k] for k in _dims(call, len(x.axes)))


def _keep_mean(graph: fx.Graph, node: fx.Node, present: Sequence[int], full: Sequence[int]) -> fx.Node:
    return _times(graph, node, math.prod(present) / math.prod(full))


def _mean_of_present(graph: fx.Graph, node: fx.Node, present: Sequence[int], full: Sequence[int]) -> fx.Node:
    return _times(graph, node, math.prod(full) / math.prod(present))


def _times(graph: fx.Graph, node: fx.Node, ratio: float) -> fx.Node:
    with graph.inserting_after(node):
        return insert(graph, torch.ops.aten.mul.Tensor, (node, ratio), value_of(node).shape, node)


def _sum(flow: Flow, call: Call) -> Label:
    """A sum, or a norm of order 2 or 1: a zero adds nothing."""
    return _reduce(flow, call, additive=call.get("ord", 2) in (1, 2) and call.get("p", 2) in (1, 2))


def _count(flow: Flow, call: Call) -> Label:
    return _reduce(flow, call, additive=False)


def _log_sum(flow: Flow, call: Call) -> Label:
    """A logarithm of a sum of exponentials: that of zeros is the logarithm of their number."""
    label = _count(flow, call)
    return Label(tuple(forget(axis) for axis in label.axes), label.static)


def _along(flow: Flow, call: Call) -> Label:
    """Shape-keeping ops whose result at one position depends on the others along ``dim``: softmax, cumsum."""
    x = flow.of(call.tensors()[0][1])
    dims = _dims(call, len(x.axes))
    axes: list[Axis] = []
    for k, axis in enumerate(x.axes):
        if k in dims and axis_size(axis) != 1:
            flow.freeze_axis(axis, f"is compared with the others of its axis by `{call.node.name}`")
            axes.append(axis)
        else:
            axes.append(forget(axis))
    return Label(tuple(axes), x.static)


def _cumulative(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    kept = _along(flow, call)
    dims = _dims(call, len(x.axes))
    axes = [kept.axes[k] if k in dims else keep_zero(axis) for k, axis in enumerate(x.axes)]
    return Label(tuple(axes), x.static)


def _similarity(flow: Flow, call: Call) -> Label:
    """sum(a b) / (|a| |b|) along ``dim``: zeros add nothing to any of the three sums."""
    a, b = flow.of(call["x1"]), flow.of(call["x2"])
    dim = call["dim"] % len(a.axes)
    axes: list[Axis] = []
    for k, (one, two) in enumerate(zip(a.axes, b.axes, strict=True)):
        own = flow.tie([one, two]) if axis_size(one) == axis_size(two) else None
        if own is None:
            flow.freeze_axis(one, f"is broadcast by `{call.node.name}`")
            flow.freeze_axis(two, f"is broadcast by `{call.node.name}`")
            if k != dim:
                axes.append(free(max(axis_size(one), axis_size(two))))
            continue
        for tied in own if k == dim else []:
            if tied.ids is not None:
                moves = (tied.carries[0] != 0) | (tied.carries[1] != 0)
                flow.freeze(tied.ids[moves], f"is not zero where `{call.node.name}` sums over it")
        if k != dim:
            axes.append(tuple(t.factor(lambda c: np.full(len(c[0]), np.nan)) for t in own))
    return Label(tuple(axes), a.static and b.static)


COMPARED = "compare positions instead of units: another unit less, and the shares of all others change"

row("aten.cosine_similarity", labels=_similarity)
row("aten.sum", "aten.linalg_vector_norm", "aten.norm", labels=_sum)
row(
    "aten.amax", "aten.amin", "aten.max.default", "aten.min.default", "aten.var", "aten.std", "aten.prod",
    "aten.argmax", "aten.argmin", "aten.any", "aten.all", "aten.count_nonzero",
    labels=_count, remedy="reduce by a sum or a mean, whose zeros add nothing, or along an axis that has no units",
)  # fmt: skip
row("aten.mean", labels=_mean, average=Average(_meant, _keep_mean, _mean_of_present))
row("aten.logsumexp", labels=_log_sum, remedy=COMPARED)
row("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", labels=_along, remedy=COMPARED)
row("aten.cumsum", labels=_cumulative, remedy=COMPARED)
