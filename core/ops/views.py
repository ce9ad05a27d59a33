"""Ops that move elements without computing: reshapes, permutations, slices, joins. Labels move with the elements."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from coppice.core.calls import Call
from coppice.core.graph import value_of
from coppice.core.labels import (
    FIXED,
    POISON,
    UNKNOWN,
    Axis,
    Factor,
    Flow,
    Label,
    agree,
    axis_size,
    free,
    keep_zero,
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
row("aten.expand", labels=_expand, rewrite=_expand_rewrite, transport=True)
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


def _bounds(call: Call, size: int) -> tuple[int, int, int]:
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
        start, end, step = _bounds(call, size)
        if step != 1:
            why = "is sliced with a step, so its positions cannot move"
            axes[dim] = flow.held(axes[dim], call.out.shape[dim], why)
        else:
            axes[dim] = take(flow, axes[dim], np.arange(start, end))
    return Label(tuple(axes), x.static)


def _slice_rewrite(call: Call, cut: Cut) -> Rewrite:
    axis = cut.of(call["self"]).axes[call["dim"]]
    size = axis_size(axis)
    if cut.count(axis) == size or call.out.shape[call["dim"]] == size:
        return Rewrite({})
    start, end, _ = _bounds(call, size)
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
        _hold(flow, gone, index % axis_size(gone), "is picked by a fixed index")
    return Label(tuple(axes), x.static)


def _hold(flow: Flow, axis: Axis, position: int, why: str) -> None:
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


row("aten.slice", labels=_slice, rewrite=_slice_rewrite, transport=True, identity=_takes_all)
row("aten.select", labels=_select, rewrite=_select_rewrite, transport=True)
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
row("aten.unbind", labels=_unbind, transport=True)
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


# ---- joins -------------------------------------------------------------------------------------------------------


def tie_others(flow: Flow, labels: Sequence[Label], dim: int, rank: int) -> list[Axis]:
    """Tie the labels along every axis but ``dim``."""
    axes: list[Axis] = []
    for k in range(rank):
        if k == dim:
            axes.append(())
            continue
        axes.append(tuple(tied.factor(agree) for tied in flow.tie([label.axes[k] for label in labels])))
    return axes


def concatenate(flow: Flow, parts: Sequence[Axis]) -> Axis:
    """One axis after another. Products with equal inner factors are joined along their outermost one."""
    if not any(labelled(part) for part in parts):
        origin = next((f.origin for part in parts for f in part if f.origin), None)
        return free(sum(axis_size(part) for part in parts), origin)
    factors = [flow.merge(part) if len(part) != 1 else part[0] for part in (p or (Factor(1),) for p in parts)]
    ids = [f.ids if f.ids is not None else np.full(f.size, FIXED) for f in factors]
    carry = [f.carry if f.carry is not None else np.full(f.size, UNKNOWN) for f in factors]
    return (Factor(sum(f.size for f in factors), np.concatenate(ids), np.concatenate(carry)),)


def _cat(flow: Flow, call: Call) -> Label:
    nodes = [node for node in call["tensors"] if value_of(node).shape != (0,)]
    labels = [flow.of(node) for node in nodes]
    rank = len(call.out.shape)
    dim = call.get("dim", 0) % rank
    if len(labels) == 1:
        return labels[0]
    axes = tie_others(flow, labels, dim, rank)
    axes[dim] = concatenate(flow, [label.axes[dim] for label in labels])
    return Label(tuple(axes), all(label.static for label in labels))


def _stack(flow: Flow, call: Call) -> Label:
    labels = [flow.of(node) for node in call["tensors"]]
    rank = len(call.out.shape)
    dim = call.get("dim", 0) % rank
    padded = [Label((*label.axes[:dim], (), *label.axes[dim:]), label.static) for label in labels]
    axes = tie_others(flow, padded, dim, rank)
    axes[dim] = free(len(labels))
    return Label(tuple(axes), all(label.static for label in labels))


row("aten.cat", "aten.concat", "aten.concatenate", labels=_cat)
row("aten.stack", labels=_stack)


def _pad(flow: Flow, call: Call) -> Label:
    """Constant padding. Padded positions of a labelled axis hold one number, so they may leave too."""
    x = flow.of(call["self"])
    value = float(call.get("value") or 0.0)
    axes = list(x.axes)
    pads = call["pad"]
    for i in range(len(pads) // 2):
        dim, (before, after) = len(axes) - 1 - i, pads[2 * i : 2 * i + 2]
        if before == after == 0:
            continue
        plain = not (isinstance(before, fx.Node) or isinstance(after, fx.Node)) and min(before, after) >= 0
        constant = call.get("mode", "constant") == "constant"
        if labelled(axes[dim]) and plain and constant:
            edge = [flow.fresh(n, value) for n in (before, after)]
            axes[dim] = concatenate(flow, [p for p in ((edge[0],), axes[dim], (edge[1],)) if axis_size(p)])
        else:
            axes[dim] = flow.held(axes[dim], call.out.shape[dim], "is padded in a way that mixes its positions")
        for other in range(len(axes)):
            if other != dim and not (constant and value == 0.0):
                axes[other] = tuple(
                    f
                    if f.carry is None
                    else f.with_carry(np.where(f.carry == value, value, UNKNOWN))
                    if constant
                    else f
                    for f in axes[other]
                )
    return Label(tuple(axes), x.static)


def _pad_rewrite(call: Call, cut: Cut) -> Rewrite:
    source, out = cut.of(call["self"]).axes, cut.out(call).axes
    pads = list(call["pad"])
    for i in range(len(pads) // 2):
        dim = len(out) - 1 - i
        if labelled(out[dim]) and axis_size(out[dim]) != axis_size(source[dim]):
            before = pads[2 * i]
            keep = cut.keep(out[dim])
            pads[2 * i] = int(keep[:before].sum())
            pads[2 * i + 1] = int(keep[before + axis_size(source[dim]) :].sum())
    return Rewrite({"pad": pads})


row("aten.pad", "aten.constant_pad_nd", labels=_pad, rewrite=_pad_rewrite)


# ---- blocks of an axis moved into space --------------------------------------------------------------------------


def _pixel_shuffle(flow: Flow, call: Call) -> Label:
    x, r = flow.of(call["self"]), call["upscale_factor"]
    *lead, c, h, w = x.axes
    channels = regroup(flow, [c], [axis_size(c) // (r * r), r, r])
    for axis in channels[1:]:
        flow.freeze_axis(axis, "becomes a position in space by pixel shuffle")
    return Label((*lead, channels[0], free(axis_size(h) * r), free(axis_size(w) * r)), x.static)


def _pixel_unshuffle(flow: Flow, call: Call) -> Label:
    x, r = flow.of(call["self"]), call["downscale_factor"]
    *lead, c, h, w = x.axes
    return Label((*lead, (*c, *free(r * r)), free(axis_size(h) // r), free(axis_size(w) // r)), x.static)


def _channel_shuffle(flow: Flow, call: Call) -> Label:
    x, groups = flow.of(call["self"]), call["groups"]
    axes = list(x.axes)
    outer, inner = regroup(flow, [axes[1]], [groups, axis_size(axes[1]) // groups])
    axes[1] = (*inner, *outer)
    return Label(tuple(axes), x.static)


def _channel_shuffle_rewrite(call: Call, cut: Cut) -> Rewrite:
    out = cut.out(call).axes[1]
    inner = next(k for k in range(len(out) + 1) if axis_size(out[k:]) == call["groups"])
    return Rewrite({"groups": cut.count(out[inner:])})


def _im2col(flow: Flow, call: Call) -> Label:
    """(N, C, H, W) -> (N, C * window, positions): each channel becomes a run of its window."""
    x = flow.of(call["self"])
    at = len(x.axes) - 3
    for axis in x.axes[at + 1 :]:
        flow.freeze_axis(axis, "is a position in space")
    window = math.prod(call["kernel_size"])
    channel = tuple(f if f.carry is None else f.with_carry(np.where(f.carry == 0, 0.0, UNKNOWN)) for f in x.axes[at])
    return Label((*x.axes[:at], (*channel, *free(window)), free(call.out.shape[-1])), x.static)


row("aten.im2col", labels=_im2col)
row("aten.pixel_shuffle", labels=_pixel_shuffle, transport=True)
row("aten.pixel_unshuffle", labels=_pixel_unshuffle, transport=True)
row("aten.channel_shuffle", labels=_channel_shuffle, rewrite=_channel_shuffle_rewrite, transport=True)
