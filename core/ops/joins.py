"""Axes put together, padded, and traded with space: concatenation, stacking, padding, pixel and channel shuffles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from coppice.core.calls import Call
from coppice.core.graph import value_of
from coppice.core.labels import FIXED, UNKNOWN, Axis, Factor, Flow, Label, agree, axis_size, free, labelled
from coppice.core.ops import Cut, Join, Rewrite, row
from coppice.core.ops.views import regroup

aten = torch.ops.aten


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


def _parts(call: Call) -> tuple[fx.Node, ...]:
    """The parts that are listed once and are not the empty tensors that old code starts from."""
    nodes: Sequence[fx.Node] = call["tensors"]
    return tuple(node for node in nodes if nodes.count(node) == 1 and value_of(node).shape != (0,))


CAT = Join(_parts, "tensors", lambda call: int(call.get("dim", 0)) % len(call.out.shape))

row("aten.cat", "aten.concat", "aten.concatenate", labels=_cat, join=CAT)
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


PIXELS = "nothing: the channels that make the pixels of one output channel leave only with that channel"

row("aten.im2col", labels=_im2col)
row("aten.pixel_shuffle", labels=_pixel_shuffle, transport=True, remedy=PIXELS)
row("aten.pixel_unshuffle", labels=_pixel_unshuffle, transport=True)
row("aten.channel_shuffle", labels=_channel_shuffle, rewrite=_channel_shuffle_rewrite, transport=True)
