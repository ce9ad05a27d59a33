"""Parts of an axis and the order along it: slices, splits, flips and rolls. Labels move with the elements."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import fx

from coppice.core.calls import Call
from coppice.core.labels import POISON, UNKNOWN, Axis, Factor, Flow, Label, axis_size, free, keep_zero, labelled
from coppice.core.ops import Cut, Rewrite, row
from coppice.core.ops.views import regroup

aten = torch.ops.aten


# ---- parts of an axis --------------------------------------------------------------------------------------------


def take(flow: Flow, axis: Axis, positions: np.ndarray[Any, Any]) -> Axis:
    """The positions of ``axis`` in the given order, as one axis."""
    size = axis_size(axis)
    if len(positions) == size and (positions == np.arange(size)).all():
        return axis
    if not labelled(axis):
        return free(len(positions), next((f.origin for f in axis if f.origin), None))
    inner = axis_size(axis[1:])
    grid = positions.reshape(-1, inner) if len(positions) % inner == 0 else None
    if grid is not None and (grid == grid[:, :1] + np.arange(inner)).all() and (grid[:, 0] % inner == 0).all():
        return (*_pick(flow, axis[0], grid[:, 0] // inner), *axis[1:])
    return _pick(flow, flow.merge(axis), positions)


def _pick(flow: Flow, factor: Factor, positions: np.ndarray[Any, Any]) -> Axis:
    if factor.ids is None or factor.carry is None:
        return free(len(positions), factor.origin)
    if len(positions) == 1:
        flow.freeze(factor.ids[positions], "is taken on its own by a slice")
        return ()
    return (Factor(len(positions), factor.ids[positions], factor.carry[positions]),)


def bounds(call: Call, size: int) -> tuple[int, int, int]:
    """(start, end, step) of a slice with literal places, as `range` takes them."""
    start, end, step = call.get("start"), call.get("end"), call.get("step", 1)
    start = 0 if start is None else start
    end = size if end is None else end
    return slice(start, end, step).indices(size)


def _slice(flow: Flow, call: Call) -> Label:
    x, dim = flow.of(call["self"]), call["dim"]
    axes = list(x.axes)
    size = axis_size(axes[dim])
    whole = call.out.shape[dim] == size
    if any(isinstance(call.get(name), fx.Node) for name in ("start", "end")) and not whole:
        axes[dim] = flow.held(axes[dim], call.out.shape[dim], "is sliced at a place that depends on the input's size")
    elif not whole:
        start, end, step = bounds(call, size)
        if step != 1:
            axes[dim] = _every(flow, axes[dim], start, end, step, call.out.shape[dim])
        else:
            axes[dim] = take(flow, axes[dim], np.arange(start, end))
    return Label(tuple(axes), x.static)


def _every(flow: Flow, axis: Axis, start: int, end: int, step: int, count: int) -> Axis:
    """Every ``step``-th position: a column of a grid whose rows may leave, as the pairs of rotary positions do."""
    size = axis_size(axis)
    if not labelled(axis):
        return free(count, next((f.origin for f in axis if f.origin), None))
    if size % step or start >= step or count * step != size:
        return flow.held(axis, count, "is sliced with a step, so its positions cannot move")
    rows, columns = regroup(flow, [axis], [count, step])
    flow.freeze_axis(columns, "is a place among those that a slice takes one of")
    return rows


def _slice_rewrite(call: Call, cut: Cut) -> Rewrite:
    axis = cut.of(call["self"]).axes[call["dim"]]
    size = axis_size(axis)
    if cut.count(axis) == size or call.out.shape[call["dim"]] == size:
        return Rewrite({})
    start, end, step = bounds(call, size)
    if step != 1:
        return Rewrite({"end": sys.maxsize})
    keep = cut.keep(axis)
    return Rewrite({"start": int(keep[:start].sum()), "end": int(keep[:end].sum())})


def _select(flow: Flow, call: Call) -> Label:
    x, dim = flow.of(call["self"]), call["dim"]
    axes = list(x.axes)
    gone = axes.pop(dim)
    index = call["index"]
    if isinstance(index, fx.Node):
        flow.freeze_axis(gone, "is indexed by a number that depends on the input's size")
    elif labelled(gone):
        hold(flow, gone, index % axis_size(gone), "is picked by a fixed index")
    return Label(tuple(axes), x.static)


def hold(flow: Flow, axis: Axis, position: int, why: str) -> None:
    """Freeze one position of ``axis``."""
    for factor, at in zip(axis, np.unravel_index(position, [f.size for f in axis]), strict=True):
        if factor.ids is not None:
            flow.freeze(factor.ids[[int(at)]], why)


def _select_rewrite(call: Call, cut: Cut) -> Rewrite:
    axis = cut.of(call["self"]).axes[call["dim"]]
    if isinstance(call["index"], fx.Node) or not labelled(axis):
        return Rewrite({})
    return Rewrite({"index": int(cut.keep(axis)[: call["index"] % axis_size(axis)].sum())})


def _split(flow: Flow, call: Call) -> tuple[Label, ...]:
    x, dim = flow.of(call["self"]), call.get("dim", 0)
    parts: list[Label] = []
    start = 0
    for value in call.node.meta["value"]:
        size = value.shape[dim]
        axes = list(x.axes)
        axes[dim] = take(flow, axes[dim], np.arange(start, start + size))
        parts.append(Label(tuple(axes), x.static))
        start += size
    return tuple(parts)


def _split_rewrite(call: Call, cut: Cut) -> Rewrite:
    dim = call.get("dim", 0)
    axis = cut.of(call["self"]).axes[dim]
    if cut.count(axis) == axis_size(axis):
        return Rewrite({})
    edges = np.cumsum([0, *(value.shape[dim] for value in call.node.meta["value"])])
    keep = cut.keep(axis)
    sizes = [int(keep[a:b].sum()) for a, b in zip(edges, edges[1:], strict=False)]
    return Rewrite({"self": call["self"], "split_sizes": sizes, "dim": dim}, target=aten.split_with_sizes.default)


def _unbind(flow: Flow, call: Call) -> tuple[Label, ...]:
    x = flow.of(call["self"])
    axes = list(x.axes)
    gone = axes.pop(call.get("dim", 0))
    flow.freeze_axis(gone, "is taken apart index by index")
    return tuple(Label(tuple(axes), x.static) for _ in range(axis_size(gone)))


def _getitem(flow: Flow, call: Call) -> Label:
    labels = flow.labels[call["arg0"]]
    assert isinstance(labels, tuple)
    chosen: Label = labels[call["arg1"]]
    return chosen


def _takes_all(call: Call) -> bool:
    """Only for literal bounds: a symbolic one may be smaller at another batch size."""
    bounds = (call.get("start"), call.get("end"), call.get("step", 1))
    return bounds[0] in (None, 0) and bounds[1] in (None, sys.maxsize) and bounds[2] == 1


APART = "take parts of several units, by split, chunk or a slice: one that stands alone is an axis of its own"

row("aten.slice", labels=_slice, rewrite=_slice_rewrite, transport=True, identity=_takes_all, remedy=APART)
row("aten.select", labels=_select, rewrite=_select_rewrite, transport=True, remedy=APART)
row("aten.split", "aten.chunk", "aten.split_with_sizes", labels=_split, rewrite=_split_rewrite, transport=True)


def _glu(flow: Flow, call: Call) -> Label:
    """a * sigmoid(b) for the halves a, b of an axis; a zero half of a makes a zero."""
    x = flow.of(call["self"])
    dim, rank = call.get("dim", -1), len(x.axes)
    half = axis_size(x.axes[dim]) // 2
    gate = [take(flow, x.axes[dim], np.arange(half)), take(flow, x.axes[dim], np.arange(half, 2 * half))]
    axes = [keep_zero(axis) for axis in x.axes]
    axes[dim % rank] = tuple(
        t.factor(lambda c: np.where(np.isinf(c).any(axis=0), POISON, np.where(c[0] == 0, 0.0, UNKNOWN)))
        for t in flow.tie(gate)
    )
    return Label(tuple(axes), x.static)


row("aten.glu", labels=_glu)
row("aten.unbind", labels=_unbind, transport=True, remedy=APART)
row("operator.getitem", labels=_getitem, transport=True)


def _narrow(flow: Flow, call: Call) -> Label:
    x, dim, start, length = flow.of(call["self"]), call["dim"], call["start"], call["length"]
    axes = list(x.axes)
    if isinstance(start, fx.Node) or isinstance(length, fx.Node):
        axes[dim] = flow.held(axes[dim], call.out.shape[dim], "is sliced at a place that depends on the input's size")
    else:
        start %= axis_size(axes[dim])
        axes[dim] = take(flow, axes[dim], np.arange(start, start + length))
    return Label(tuple(axes), x.static)


def _narrow_rewrite(call: Call, cut: Cut) -> Rewrite:
    axis = cut.of(call["self"]).axes[call["dim"]]
    if not labelled(axis):
        return Rewrite({})
    keep, start = cut.keep(axis), call["start"] % axis_size(axis)
    return Rewrite({"start": int(keep[:start].sum()), "length": int(keep[start : start + call["length"]].sum())})


row("aten.narrow", labels=_narrow, rewrite=_narrow_rewrite, transport=True)


# ---- order along an axis -----------------------------------------------------------------------------------------


def _flip(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    axes = list(x.axes)
    for dim in call["dims"]:
        axes[dim] = take(flow, axes[dim], np.arange(axis_size(axes[dim]))[::-1])
    return Label(tuple(axes), x.static)


def _roll(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    dims = call["dims"]
    if not dims:
        flow.freeze_label(x, "is rolled across several axes at once")
        return Label(tuple(free(size) for size in call.out.shape), x.static)
    axes = list(x.axes)
    for shift, dim in zip(call["shifts"], dims, strict=True):
        if isinstance(shift, fx.Node):
            flow.freeze_axis(axes[dim], "is rolled by a number that depends on the input's size")
        else:
            axes[dim] = take(flow, axes[dim], np.roll(np.arange(axis_size(axes[dim])), shift))
    return Label(tuple(axes), x.static)


def _roll_rewrite(call: Call, cut: Cut) -> Rewrite:
    """Rolling by s moves the last s positions to the front; after a cut, as many as stayed of them."""
    x = cut.of(call["self"])
    shifts = []
    for shift, dim in zip(call["shifts"], call["dims"], strict=True):
        axis = x.axes[dim]
        if isinstance(shift, fx.Node) or not labelled(axis):
            shifts.append(shift)
        else:
            size = axis_size(axis)
            shifts.append(int(cut.keep(axis)[size - shift % size :].sum()))
    return Rewrite({"shifts": shifts})


row("aten.flip", labels=_flip, transport=True)
row("aten.roll", labels=_roll, rewrite=_roll_rewrite, transport=True)
