"""Look-ups whose places depend on data: the indexed axis is held, the others pass."""

from __future__ import annotations

from coppice.core.calls import Call
from coppice.core.labels import Axis, Flow, Label, free, keep_zero
from coppice.core.ops import row

LOOKED_UP = "is looked up by an index that only exists at run time"
ANY_ROW = "nothing: the index is data, so any row may be asked for"


def _embedding(flow: Flow, call: Call) -> Label:
    weight, index = flow.of(call["weight"]), flow.of(call["indices"])
    flow.freeze_axis(weight.axes[0], LOOKED_UP, ANY_ROW)
    return Label(
        (*(free(s) for s in call.out.shape[: len(index.axes)]), weight.axes[1]), weight.static and index.static
    )


def _index(flow: Flow, call: Call) -> Label:
    """``x[i, j]`` with index tensors: one run of indexed axes becomes the shape of the indices, in place."""
    x = flow.of(call["self"])
    used = [k for k, index in enumerate(call["indices"]) if index is not None]
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


row("aten.embedding", labels=_embedding, roles={"weight": ("row", "feature")})
row("aten.index.Tensor", labels=_index)
row("aten.index_select", labels=_index_select)
