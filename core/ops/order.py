"""Ops that compare positions along one axis and pick or sort them: that axis is held, the others pass.

Values come from the operand, so a zero slice gives zeros; places do not.
"""

from __future__ import annotations

from coppice.core.calls import Call
from coppice.core.labels import Flow, Label, forget, free, keep_zero
from coppice.core.ops import row

COMPARED = "is compared with the others of its axis by `{node}`"


def _picked(flow: Flow, call: Call) -> tuple[Label, ...]:
    """(values, places): the largest, the middle or all in order, along ``dim`` (the last axis where none is given)."""
    x = flow.of(call["self"])
    return tuple(_along(flow, call, x, value.shape, places=k > 0) for k, value in enumerate(call.node.meta["value"]))


def _places(flow: Flow, call: Call) -> Label:
    return _along(flow, call, flow.of(call["self"]), call.out.shape, places=True)


def _along(flow: Flow, call: Call, x: Label, shape: tuple[int, ...], places: bool) -> Label:
    rank = len(x.axes)
    if not rank:
        return Label((), x.static)
    at = (-1 if (dim := call.get("dim")) is None else dim) % rank
    flow.freeze_axis(x.axes[at], COMPARED.format(node=call.node.name))
    axes = [forget(axis) if places else keep_zero(axis) for axis in x.axes]
    axes[at : at + 1] = [free(shape[at])] if len(shape) == rank else []
    return Label(tuple(axes), x.static)


row(
    "aten.max.dim", "aten.min.dim", "aten.median.dim", "aten.nanmedian.dim", "aten.mode", "aten.kthvalue",
    "aten.topk", "aten.sort", "aten.cummax", "aten.cummin",
    labels=_picked,
)  # fmt: skip
row("aten.argsort", labels=_places)
