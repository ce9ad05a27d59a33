"""Ops that regroup or permute axes without touching elements: reshapes, expansions, transpositions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from coppice.core.calls import Call
from coppice.core.graph import value_of
from coppice.core.labels import (
    UNKNOWN,
    Axis,
    Flow,
    Label,
    axis_size,
    free,
    labelled,
)
from coppice.core.ops import Cut, Rewrite, row

aten = torch.ops.aten
MIXED = "is reshaped so that its units do not stay together"


# ---- reshapes ----------------------------------------------------------------------------------------------------


def regroup(flow: Flow, axes: Sequence[Axis], shape: Sequence[int]) -> tuple[Axis, ...]:
    """The row-major view of ``axes`` as ``shape``: factors are cut and joined, never computed."""
    queue = [factor for axis in axes for factor in axis]
    if math.prod(f.size for f in queue) != math.prod(shape) or 0 in shape:
        for factor in queue:
            flow.freeze_axis((factor,), MIXED)
        return tuple(free(size) for size in shape)
    out: list[Axis] = []
    rest = list(shape)
    while rest:
        spans, taken = [rest.pop(0)], []
        have, want = 1, spans[0]
        while have != want:  # the shortest run of input factors that covers whole output axes
            if have < want and queue and (want // have) * have == want and queue[0].size % (want // have) == 0:
                need = want // have
                first, *others = (
                    flow.split(queue[0], [need, queue[0].size // need]) if queue[0].size > need else [queue[0]]
                )
                taken.append(first)
                queue[:1] = others
                have = want
            elif have < want:
                taken.append(queue.pop(0))
                have *= taken[-1].size
            else:
                spans.append(rest.pop(0))
                want *= spans[-1]
        if len(spans) == 1:
            out.append(tuple(f for f in taken if f.size != 1))
        else:
            out += [flow.held(tuple(taken), size, MIXED) for size in spans]
    return tuple(out)


def _reshape(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    axes = regroup(flow, x.axes, call.out.shape)
    return Label(_writable(flow, call, axes, call.get("size") or call.get("shape") or ()), x.static)


def _writable(flow: Flow, call: Call, axes: tuple[Axis, ...], given: Sequence[Any]) -> tuple[Axis, ...]:
    """Hold units along dynamic sizes that a cut could not write: torch infers one size of a reshape, not two."""
    dynamic = [k for k, entry in enumerate(given) if isinstance(entry, fx.Node) and labelled(axes[k])]
    inferred = [k for k, entry in enumerate(given) if entry == -1 and call.out.symbols[k] is not None]
    if len(dynamic) + len(inferred) < 2:
        return axes
    why = "is part of a reshape with two dynamic sizes"
    return tuple(flow.held(a, axis_size(a), why) if k in dynamic else a for k, a in enumerate(axes))


def _reshape_rewrite(call: Call, cut: Cut) -> Rewrite:
    name = "size" if "size" in call.names else "shape"
    out = cut.out(call).axes
    given = list(call[name])
    new = [
        entry
        if entry == -1 or (cut.count(axis) == axis_size(axis))
        else (-1 if isinstance(entry, fx.Node) else cut.count(axis))
        for entry, axis in zip(given, out, strict=True)
    ]
    inferred = [i for i, entry in enumerate(new) if isinstance(entry, int) and entry == -1]
    if len(inferred) > 1:  # a literal -1 gives way to a dynamic size that lost units
        for i in inferred:
            if isinstance(given[i], int) and call.out.symbols[i] is None:
                new[i] = cut.count(out[i])
    return Rewrite({name: new})


def _unflatten(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    axes = list(regroup(flow, x.axes, call.out.shape))
    dim = call["dim"] % len(x.axes)
    for k, entry in enumerate(call["sizes"], start=dim):
        if isinstance(entry, fx.Node):
            axes[k] = flow.held(axes[k], axis_size(axes[k]), "is unflattened to a size that depends on the input's")
    return Label(tuple(axes), x.static)


def _unflatten_rewrite(call: Call, cut: Cut) -> Rewrite:
    dim, count = call["dim"], len(call["sizes"])
    dim %= len(value_of(call["self"]).shape)
    sizes = [
        entry if entry == -1 or isinstance(entry, fx.Node) else cut.count(axis)
        for entry, axis in zip(call["sizes"], cut.out(call).axes[dim : dim + count], strict=True)
    ]
    return Rewrite({"sizes": sizes})


def _expand(flow: Flow, call: Call) -> Label:
    """A stretched axis holds equal copies, so any of them may leave: it gets variables of its own."""
    x = flow.of(call["self"])
    out = call.out
    axes: list[Axis] = []
    for k, size in enumerate(out.shape):
        at = k - len(out.shape) + len(x.axes)
        own = x.axes[at] if at >= 0 else ()
        if axis_size(own) == size:
            axes.append(own)
        else:
            axes.append(free(size) if out.symbols[k] else flow.fresh_axis(size))
    return Label(tuple(axes), x.static)


def _expand_rewrite(call: Call, cut: Cut) -> Rewrite:
    sizes = [
        entry if entry == -1 or isinstance(entry, fx.Node) else cut.count(axis)
        for entry, axis in zip(call["size"], cut.out(call).axes, strict=True)
    ]
    return Rewrite({"size": sizes})


def _expand_as(flow: Flow, call: Call) -> Label:
    """`_expand` to the shape of another tensor: stretched axes leave with the other's."""
    x, other = flow.of(call["self"]), flow.of(call["other"])
    lead = len(other.axes) - len(x.axes)
    axes: list[Axis] = []
    for k, axis in enumerate(other.axes):
        own = x.axes[k - lead] if k >= lead else ()
        if axis_size(own) == axis_size(axis):
            axes.append(tuple(t.factor(lambda c: c[0]) for t in flow.tie([own, axis])))
        else:
            axes.append(tuple(f if f.ids is None else f.with_carry(np.full(f.size, UNKNOWN)) for f in axis))
    return Label(tuple(axes), x.static)


def _view_as(flow: Flow, call: Call) -> Label:
    """A reshape whose sizes are read off another tensor, so both must lose the same units."""
    x, other = flow.of(call["self"]), flow.of(call["other"])
    axes = regroup(flow, x.axes, call.out.shape)
    tied = [flow.tie([a, b]) if axis_size(a) != 1 else [] for a, b in zip(axes, other.axes, strict=True)]
    return Label(tuple(tuple(t.factor(lambda c: c[0]) for t in axis) for axis in tied), x.static)


def _repeat(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    repeats = [value_of(r).hint if isinstance(r, fx.Node) else r for r in call[call.names[1]]]
    axes = [()] * (len(repeats) - len(x.axes)) + list(x.axes)
    repeats = [1] * (len(axes) - len(repeats)) + repeats
    return Label(
        tuple((*(flow.fresh_axis(int(r or 1))), *axis) for r, axis in zip(repeats, axes, strict=True)), x.static
    )


def _repeat_rewrite(call: Call, cut: Cut) -> Rewrite:
    name = call.names[1]
    out, source = cut.out(call).axes, cut.of(call["self"]).axes
    lead = len(out) - len(source)
    repeats = []
    for k, entry in enumerate(call[name]):
        axis = out[k + len(out) - len(call[name])]
        own = source[k - lead] if k >= lead else ()
        repeats.append(entry if isinstance(entry, fx.Node) else cut.count(axis[: len(axis) - len(own)]))
    return Rewrite({name: repeats})


def _repeat_interleave(flow: Flow, call: Call) -> Label:
    x, repeats, dim = flow.of(call["self"]), call["repeats"], call["dim"]
    if not isinstance(repeats, int) or dim is None:
        flow.freeze_label(x, "is repeated a number of times that depends on data")
        return Label(tuple(free(size) for size in call.out.shape), x.static)
    axes = list(x.axes)
    axes[dim] = (*axes[dim], *flow.fresh_axis(repeats))
    return Label(tuple(axes), x.static)


def _repeat_interleave_rewrite(call: Call, cut: Cut) -> Rewrite:
    dim = call["dim"]
    out, source = cut.out(call).axes[dim], cut.of(call["self"]).axes[dim]
    return Rewrite({"repeats": cut.count(out[len(source) :]), "output_size": None})


row(
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.view_copy", "aten._reshape_alias",
    labels=_reshape, rewrite=_reshape_rewrite, transport=True,
)  # fmt: skip
row("aten.flatten", "aten.ravel", labels=_reshape, transport=True)
row("aten.unflatten", labels=_unflatten, rewrite=_unflatten_rewrite, transport=True)
row("aten.expand", "aten.broadcast_to", labels=_expand, rewrite=_expand_rewrite, transport=True)
row("aten.expand_as", labels=_expand_as)
row("aten.view_as", "aten.reshape_as", labels=_view_as)
row("aten.repeat", "aten.tile", labels=_repeat, rewrite=_repeat_rewrite, transport=True)
row("aten.repeat_interleave.self_int", labels=_repeat_interleave, rewrite=_repeat_interleave_rewrite, transport=True)


# ---- permutations ------------------------------------------------------------------------------------------------


def _permuted(order: Sequence[int], x: Label) -> Label:
    return Label(tuple(x.axes[k] for k in order), x.static)


def _permute(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    return _permuted([d % len(x.axes) for d in call["dims"]], x)


def _transpose(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    order = list(range(len(x.axes)))
    if order:
        a, b = (call.get("dim0", 0), call.get("dim1", 1)) if "dim0" in call.names else (0, len(order) - 1)
        order[a], order[b] = order[b], order[a]
    return _permuted(order, x)


def _matrix_transpose(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    return _permuted([*range(len(x.axes) - 2), len(x.axes) - 1, len(x.axes) - 2], x)


def _movedim(flow: Flow, call: Call) -> Label:
    x = flow.of(call["self"])
    rank = len(x.axes)
    sources, targets = call["source"], call["destination"]
    sources = [s % rank for s in ([sources] if isinstance(sources, int) else sources)]
    targets = [t % rank for t in ([targets] if isinstance(targets, int) else targets)]
    order: list[int] = [-1] * rank
    for s, t in zip(sources, targets, strict=True):
        order[t] = s
    rest = iter(k for k in range(rank) if k not in sources)
    return _permuted([next(rest) if k < 0 else k for k in order], x)


def _squeeze(flow: Flow, call: Call) -> Label:
    """Unsqueeze and squeeze: the axes that are not of size 1 stay in order."""
    x = flow.of(call["self"])
    return Label(regroup(flow, x.axes, call.out.shape), x.static)


row("aten.permute", labels=_permute, transport=True)
row("aten.transpose", "aten.t", "aten.swapaxes", "aten.swapdims", "aten.numpy_T", labels=_transpose, transport=True)
row("aten.mT", "aten.matrix_H", "aten.adjoint", labels=_matrix_transpose, transport=True)
row("aten.movedim", "aten.moveaxis", labels=_movedim, transport=True)
row("aten.squeeze", "aten.unsqueeze", labels=_squeeze, transport=True)
