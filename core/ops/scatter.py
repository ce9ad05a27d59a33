"""Writes into part of a tensor, as functions: the written axis is followed where its place is fixed, else held."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from coppice.core.calls import Call
from coppice.core.labels import (
    POISON,
    UNKNOWN,
    Axis,
    Carry,
    Flow,
    Label,
    agree,
    axis_size,
    forget,
    keep_zero,
    labelled,
)
from coppice.core.ops import Cut, Rewrite, row
from coppice.core.ops.indexing import indexed
from coppice.core.ops.joins import concatenate
from coppice.core.ops.parts import bounds, hold, take

WRITTEN = "is written to at places that only exist at run time"


def _tied(flow: Flow, x: Axis, source: Axis) -> Axis:
    """An axis that both the written tensor and its source have; one value written along it says nothing of a unit."""
    if axis_size(x) != axis_size(source):
        return forget(x)
    return tuple(tied.factor(agree) for tied in flow.tie([x, source]))


def _slice_scatter(flow: Flow, call: Call) -> Label:
    """``x[..., start:end, ...] = source``: what lies before, the source, what lies behind."""
    x, source, dim = flow.of(call["self"]), flow.of(call["src"]), call.get("dim", 0)
    rank = len(x.axes)
    dim %= rank
    axes = [_tied(flow, x.axes[k], source.axes[k]) for k in range(rank) if k != dim]
    axes.insert(dim, _overwritten(flow, call, x.axes[dim], source.axes[dim]))
    return Label(tuple(axes), x.static and source.static)


def _overwritten(flow: Flow, call: Call, x: Axis, source: Axis) -> Axis:
    if not (labelled(x) or labelled(source)):
        return x
    size = axis_size(x)
    start, end, step = bounds(call, size) if _literal(call) else (0, 0, 0)
    if step != 1 or end - start != axis_size(source):
        flow.freeze_axis(source, WRITTEN)
        return flow.held(x, size, WRITTEN)
    middle = take(flow, x, np.arange(start, end))
    flow.tie([middle, source])
    if axis_size(source) == size:
        return source
    before, after = take(flow, x, np.arange(start)), take(flow, x, np.arange(end, size))
    present = [part for part, n in ((before, start), (source, end - start), (after, size - end)) if n]
    return concatenate(flow, present)


def _literal(call: Call) -> bool:
    return not any(isinstance(call.get(name), fx.Node) for name in ("start", "end", "step"))


def _slice_scatter_rewrite(call: Call, cut: Cut) -> Rewrite:
    axis = cut.of(call["self"]).axes[call.get("dim", 0)]
    size = axis_size(axis)
    if cut.count(axis) == size:
        return Rewrite({})
    start, end, _ = bounds(call, size)
    keep = cut.keep(axis)
    return Rewrite({"start": int(keep[:start].sum()), "end": int(keep[:end].sum())})


def _select_scatter(flow: Flow, call: Call) -> Label:
    """``x[..., index, ...] = source``: that index stays."""
    x, source, dim = flow.of(call["self"]), flow.of(call["src"]), call["dim"]
    dim %= len(x.axes)
    others = [axis for k, axis in enumerate(x.axes) if k != dim]
    axes = [_tied(flow, a, b) for a, b in zip(others, source.axes, strict=True)]
    gone = x.axes[dim]
    if isinstance(call["index"], fx.Node):
        gone = flow.held(gone, axis_size(gone), WRITTEN)
    elif labelled(gone):
        hold(flow, gone, call["index"] % axis_size(gone), "is written to by a fixed index")
    axes.insert(dim, forget(gone))
    return Label(tuple(axes), x.static and source.static)


def _select_scatter_rewrite(call: Call, cut: Cut) -> Rewrite:
    axis = cut.of(call["self"]).axes[call["dim"]]
    if isinstance(call["index"], fx.Node) or not labelled(axis):
        return Rewrite({})
    return Rewrite({"index": int(cut.keep(axis)[: call["index"] % axis_size(axis)].sum())})


def _copy(flow: Flow, call: Call) -> Label:
    """``source`` broadcast to the shape of ``self``, whose values are gone."""
    x, source = flow.of(call["self"]), flow.of(call["src"])
    lead = len(x.axes) - len(source.axes)
    axes: list[Axis] = []
    for k, axis in enumerate(x.axes):
        own = source.axes[k - lead] if k >= lead else ()
        if axis_size(own) == axis_size(axis):
            axes.append(tuple(tied.factor(lambda c: c[1]) for tied in flow.tie([axis, own])))
        else:
            axes.append(tuple(f if f.ids is None else f.with_carry(np.full(f.size, UNKNOWN)) for f in axis))
    kept = axes if call.out.dtype is None or call.out.dtype.is_floating_point else map(keep_zero, axes)
    return Label(tuple(kept), source.static)


def _index_put(flow: Flow, call: Call) -> Label:
    """``x[i, j] = values``: indexed axes are held; behind them, x and the values lose the same units."""
    x, values = flow.of(call["self"]), flow.of(call["values"])
    used, rank = indexed(call), len(x.axes)
    behind = range(len(used), rank) if used == list(range(len(used))) else range(0)
    axes: list[Axis] = []
    for k, axis in enumerate(x.axes):
        if k in behind:
            own = values.axes[k - rank] if rank - k <= len(values.axes) else ()
            axes.append(_tied(flow, axis, own))
        else:
            axes.append(flow.held(axis, axis_size(axis), WRITTEN))
    for axis in values.axes[: max(0, len(values.axes) - len(behind))]:
        flow.freeze_axis(axis, WRITTEN)
    if call.get("accumulate"):
        axes = [keep_zero(axis) for axis in axes]
    return Label(tuple(axes), x.static and values.static)


def _scatter(flow: Flow, call: Call) -> Label:
    """Along ``dim`` places are data; along the others, index and source lie on x position by position."""
    x, index = flow.of(call["self"]), flow.of(call["index"])
    source = flow.of(call["src"]) if isinstance(call.get("src"), fx.Node) else None
    dim = call["dim"] % max(1, len(x.axes))
    axes: list[Axis] = []
    for k, axis in enumerate(x.axes):
        parts = [p.axes[k] for p in (index, source) if p is not None]
        if k != dim and all(axis_size(part) == axis_size(axis) for part in parts):
            axes.append(_zero_where_all(flow, [axis, *([source.axes[k]] if source else [])], index.axes[k], call))
            continue
        for part in parts:
            flow.freeze_axis(part, WRITTEN)
        axes.append(flow.held(axis, axis_size(axis), WRITTEN))
    return Label(tuple(axes), False)


def _zero_where_all(flow: Flow, floats: Sequence[Axis], index: Axis, call: Call) -> Axis:
    """Zero where x and the source are; a value written as a number is known only if it is zero."""
    written = call.get("value", 0)
    plain = isinstance(written, (int, float)) and written == 0
    count = len(floats)

    def carry(carries: Sequence[Carry]) -> Carry:
        own = np.stack(carries[:count])
        zero = np.where((own == 0).all(axis=0) & plain, 0.0, UNKNOWN)
        return np.where(np.isinf(own).any(axis=0), POISON, zero)

    return tuple(tied.factor(carry) for tied in flow.tie([*floats, index]))


def _index_write(flow: Flow, call: Call) -> Label:
    """``x.index_add(dim, index, source)``: rows of the source go to rows of x that data names."""
    x, source, dim = flow.of(call["self"]), flow.of(call["source"]), call["dim"]
    dim %= len(x.axes)
    axes = [_tied(flow, x.axes[k], source.axes[k]) if k != dim else x.axes[k] for k in range(len(x.axes))]
    flow.freeze_axis(source.axes[dim], WRITTEN)
    axes[dim] = flow.held(x.axes[dim], axis_size(x.axes[dim]), WRITTEN)
    return Label(tuple(keep_zero(axis) for axis in axes), x.static and source.static)


row("aten.slice_scatter", labels=_slice_scatter, rewrite=_slice_scatter_rewrite)
row("aten.select_scatter", labels=_select_scatter, rewrite=_select_scatter_rewrite)
row("aten.copy", labels=_copy)
row("aten.index_put", labels=_index_put)
row("aten.scatter.src", "aten.scatter.value", "aten.scatter_add", labels=_scatter)
row("aten.index_add", "aten.index_copy", labels=_index_write)
