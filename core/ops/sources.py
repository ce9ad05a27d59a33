"""Tensors made from nothing or from a shape: a uniform fill may shrink with what it meets, anything else is free."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from coppice.core.calls import Call
from coppice.core.labels import UNKNOWN, Axis, Flow, Label, free
from coppice.core.ops import Cut, Rewrite, row


def _fill(value: float | None):  # type: ignore[no-untyped-def]
    """A fill with ``value`` (None: the argument ``fill_value``) whose size is an argument."""

    def labels(flow: Flow, call: Call) -> Label:
        given = call.get("fill_value") if value is None else value
        carry = float(given) if isinstance(given, (int, float)) else UNKNOWN
        out = call.out
        axes: list[Axis] = [
            free(size) if symbol else flow.fresh_axis(size, carry)
            for size, symbol in zip(out.shape, out.symbols, strict=True)
        ]
        return Label(tuple(axes), static=True)

    return labels


def _like(value: float | None):  # type: ignore[no-untyped-def]
    """A fill of the shape of another tensor with ``value`` (None: an argument): it loses the same units."""

    def labels(flow: Flow, call: Call) -> Label:
        given = call.get("fill_value", call.get("value")) if value is None else value
        carry = float(given) if isinstance(given, (int, float)) else UNKNOWN
        x = flow.of(call["self"])
        return Label(
            tuple(tuple(f if f.ids is None else f.with_carry(np.full(f.size, carry)) for f in a) for a in x.axes)
        )

    return labels


def _fill_rewrite(call: Call, cut: Cut) -> Rewrite:
    sizes: list[Any] = [
        entry if isinstance(entry, fx.Node) else cut.count(axis)
        for entry, axis in zip(call["size"], cut.out(call).axes, strict=True)
    ]
    return Rewrite({"size": sizes})


def _free(flow: Flow, call: Call) -> Label:
    return Label(tuple(free(size) for size in call.out.shape), static=True)


row("aten.zeros", "aten.new_zeros", labels=_fill(0.0), rewrite=_fill_rewrite)
row("aten.ones", "aten.new_ones", labels=_fill(1.0), rewrite=_fill_rewrite)
row("aten.full", "aten.new_full", labels=_fill(None), rewrite=_fill_rewrite)
row("aten.empty", "aten.new_empty", labels=_fill(None), rewrite=_fill_rewrite)
row("aten.zeros_like", "aten.zero", labels=_like(0.0))
row("aten.ones_like", labels=_like(1.0))
row("aten.full_like", "aten.empty_like", "aten.fill", labels=_like(None))
row("aten.arange", "aten.scalar_tensor", "aten.linspace", "aten.eye", labels=_free)
