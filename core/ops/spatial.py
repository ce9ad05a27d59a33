"""Pooling, windows and resampling: channels pass one by one, positions in space are free."""

from __future__ import annotations

import math

import numpy as np

from coppice.core.calls import Call
from coppice.core.labels import UNKNOWN, Flow, Label, axis_size, forget, free, keep_zero
from coppice.core.ops import row
from coppice.core.ops.views import regroup


def _window(rank: int):  # type: ignore[no-untyped-def]
    """A row for an op that works on the last ``rank`` axes of each channel and maps zeros to zeros."""

    def labels(flow: Flow, call: Call) -> Label | tuple[Label, ...]:
        x = flow.of(call.tensors()[0][1])
        lead = len(x.axes) - rank
        for axis in x.axes[lead:]:
            flow.freeze_axis(axis, "is a position in space")
        value = call.node.meta["value"]
        values = value if isinstance(value, tuple) else (value,)
        out = tuple(  # the second result of a pooling holds places, which are not zero where the map is
            Label((*map(forget if k else keep_zero, x.axes[:lead]), *map(free, v.shape[lead:])), x.static)
            for k, v in enumerate(values)
        )
        return out if isinstance(value, tuple) else out[0]

    return labels


def _grid_sampler(flow: Flow, call: Call) -> Label:
    """(N, C, space) sampled at (N, places, coordinates): a channel that is zero is zero wherever it is read."""
    x, grid = flow.of(call["input"]), flow.of(call["grid"])
    for axis in x.axes[2:]:
        flow.freeze_axis(axis, "is a position in space")
    flow.freeze_axis(grid.axes[-1], "is a coordinate of a place")
    batch = tuple(tied.factor(lambda c: np.full(len(c[0]), UNKNOWN)) for tied in flow.tie([x.axes[0], grid.axes[0]]))
    return Label((batch, keep_zero(x.axes[1]), *map(forget, grid.axes[1:-1])), x.static and grid.static)


def _unfold(flow: Flow, call: Call) -> Label:
    """Windows along one axis: it becomes the number of windows, and their width comes last."""
    x = flow.of(call["self"])
    at = call["dimension"] % max(1, len(x.axes))
    flow.freeze_axis(x.axes[at], f"is an axis that `{call.node.name}` slides its window along")
    axes = [keep_zero(axis) for axis in x.axes]
    axes[at] = free(call.out.shape[at])
    return Label((*axes, free(call.out.shape[-1])), x.static)


def _col2im(flow: Flow, call: Call) -> Label:
    """(N, C * window, positions) -> (N, C, H, W): overlapping windows are added; a channel has a run of its window."""
    x = flow.of(call["self"])
    at, window = len(x.axes) - 2, math.prod(call["kernel_size"])
    channels, places = regroup(flow, [x.axes[at]], [axis_size(x.axes[at]) // window, window])
    flow.freeze_axis(places, "is a position in the window that is put together")
    flow.freeze_axis(x.axes[at + 1], "is a position in space")
    return Label((*x.axes[:at], keep_zero(channels), *map(free, call.out.shape[-2:])), x.static)


row("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d", labels=_grid_sampler)
row("aten.unfold", labels=_unfold)
row("aten.col2im", labels=_col2im)
for rank in (1, 2, 3):
    row(
        *(f"aten.{kind}{rank}d" for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool")),
        f"aten.max_pool{rank}d_with_indices",
        labels=_window(rank),
    )
for name, rank in (("linear1d", 1), ("nearest1d", 1), ("bilinear2d", 2), ("bicubic2d", 2), ("nearest2d", 2),
                   ("trilinear3d", 3), ("nearest3d", 3)):  # fmt: skip
    row(f"aten.upsample_{name}", labels=_window(rank))
    if "nearest" in name:
        row(f"aten._upsample_{name.replace('nearest', 'nearest_exact')}", labels=_window(rank))
row("aten._upsample_bilinear2d_aa", "aten._upsample_bicubic2d_aa", labels=_window(2))
row("aten.reflection_pad1d", "aten.replication_pad1d", labels=_window(1))
row("aten.reflection_pad2d", "aten.replication_pad2d", labels=_window(2))
row("aten.reflection_pad3d", "aten.replication_pad3d", labels=_window(3))
