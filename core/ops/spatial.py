"""Pooling and resampling: channels pass one by one, positions in space are free."""

from __future__ import annotations

from coppice.core.calls import Call
from coppice.core.labels import Flow, Label, forget, free, keep_zero
from coppice.core.ops import row


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
