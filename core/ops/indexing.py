"""Look-ups whose places depend on data: the indexed axis is held, the others pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from coppice.core.calls import Call
from coppice.core.graph import value_of
from coppice.core.labels import POISON, UNKNOWN, Axis, Carry, Flow, Label, axis_size, forget, free, keep_zero
from coppice.core.ops import row

LOOKED_UP = "is looked up by an index that only exists at run time"
ANY_ROW = "nothing: the index is data, so any row may be asked for"


def _embedding(flow: Flow, call: Call) -> Label:
    weight, index = flow.of(call["weight"]), flow.of(call["indices"])
    flow.freeze_axis(weight.axes[0], LOOKED_UP, ANY_ROW)
    return Label(
        (*(free(s) for s in call.out.shape[: len(index.axes)]), weight.axes[1]), weight.static and index.static
    )


def indexed(call: Call) -> list[int]:
    """The axes that ``indices`` stand on: one each, a boolean mask as many as it has itself."""
    used: list[int] = []
    at = 0
    for index in call["indices"]:
        value = None if index is None else value_of(index)
        rank = len(value.shape) if value is not None and value.dtype is torch.bool else 1
        used += range(at, at + rank) if index is not None else ()
        at += rank
    return used


def _index(flow: Flow, call: Call) -> Label:
    """``x[i, j]`` with index tensors: one run of indexed axes becomes the shape of the indices, in place."""
    x = flow.of(call["self"])
    used = indexed(call)
    for k in used:
        flow.freeze_axis(x.axes[k], LOOKED_UP)
    out = call.out.shape
    if used != list(range(used[0], used[-1] + 1)):
        flow.freeze_label(x, "is indexed along axes that are not neighbours")
        return Label(tuple(free(size) for size in out), x.static)
    added = len(out) - (len(x.axes) - len(used))
    middle: list[Axis] = [free(size) for size in out[used[0] : used[0] + added]]
    return Label(
        (*map(keep_zero, x.axes[: used[0]]), *middle, *map(keep_zero, x.axes[used[-1] + 1 :])),
        x.static and all(flow.of(i).static for i in call["indices"] if i is not None),
    )


def _index_select(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    axes = [keep_zero(axis) for axis in x.axes]
    axes[call["dim"]] = flow.held(axes[call["dim"]], call.out.shape[call["dim"]], LOOKED_UP)
    return Label(tuple(axes), x.static and flow.of(call["index"]).static)


def _gather(flow: Flow, call: Call) -> Label:
    """``out[i, j] = x[i, index[i, j]]``: along ``dim`` places are data; elsewhere x and index go together."""
    x = flow.of(call["self"])
    index = flow.of(call["index"] if "index" in call.names else call["indices"])
    if call.get("dim") is None:
        flow.freeze_label(x, LOOKED_UP)
        return Label(tuple(free(size) for size in call.out.shape), x.static and index.static)
    dim = call["dim"] % max(1, len(x.axes))
    axes: list[Axis] = []
    for k, (own, places) in enumerate(zip(x.axes, index.axes, strict=True)):
        if k == dim:
            flow.freeze_axis(own, LOOKED_UP)
            axes.append(forget(places))
        elif axis_size(own) == axis_size(places):
            axes.append(tuple(tied.factor(_first_zero) for tied in flow.tie([own, places])))
        elif axis_size(own) == 1:
            axes.append(forget(places))
        else:
            flow.freeze_axis(places, "is cut from a longer axis")
            axes.append(flow.held(own, call.out.shape[k], "is cut to the length of an index"))
    return Label(tuple(axes), x.static and index.static)


def _first_zero(carries: Sequence[Carry]) -> Carry:
    return np.where(carries[0] == 0, 0.0, np.where(np.isinf(carries[0]), POISON, UNKNOWN))


row("aten.gather", "aten.take_along_dim", labels=_gather)
row("aten.embedding", labels=_embedding, roles={"weight": ("row", "feature")})
row("aten.index.Tensor", labels=_index)
row("aten.index_select", labels=_index_select)
