"""Ops that sum over an axis of two operands: linear, convolution, matmul, attention, einsum.

A contracted position may leave exactly when what it adds to the sum is zero once its unit is removed. Where one operand
is a weight (computed from parameters alone), the data must be zero by itself: the weight's slice is cut, never masked.
Data that holds a constant may leave too, where the call has a bias that can take over what the constant adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from coppice.core.calls import Call
from coppice.core.labels import (
    POISON,
    UNKNOWN,
    Axis,
    Carry,
    Factor,
    Flow,
    Label,
    axis_size,
    forget,
    free,
    keep_zero,
)
from coppice.core.ops import Cut, Macs, Rewrite, row
from coppice.core.ops.columns import CONVOLUTION, LINEAR
from coppice.core.ops.views import regroup

CONSTANT = "the constant"
PLAIN = ""
NONZERO = "still contributes {carry} to `{node}` once it is removed"


def contract(flow: Flow, call: Call, a: Label, ka: int, b: Label, kb: int, no_fold: str | None = PLAIN) -> Axis:
    """Tie axis ``ka`` of ``a`` to axis ``kb`` of ``b`` and freeze what does not arrive as zero; returns the axis.

    Where ``no_fold`` is None a constant may arrive too: the call's bias takes over what it adds. Else it says why not.
    """
    axes = a.axes[ka], b.axes[kb]
    weighted = a.static != b.static
    if not weighted:
        no_fold = PLAIN
    out: list[Factor] = []
    folded: list[Factor] = []
    for tied in flow.tie(axes, f"is summed over in `{call.node.name}` with an axis that no parameter makes"):
        ids = tied.ids
        if ids is None:
            out.append(Factor(tied.size, origin=tied.origin))
            folded.append(out[-1])
            continue
        one, two = tied.carries
        out.append(Factor(tied.size, ids, np.zeros(tied.size)))
        if weighted:
            data = two if a.static else one
            exact = np.isfinite(data) if no_fold is None else data == 0
        else:
            data = np.where(one == 0, two, one)
            exact = ((one == 0) | (two == 0)) & ~np.isinf(one) & ~np.isinf(two)
        folded.append(Factor(tied.size, ids, np.where(exact, data, 0.0)))
        if not exact.all():
            for text in {_carries(c) for c in data[~exact].tolist()}:
                hit = ~exact & np.array([_carries(c) == text for c in data.tolist()])
                why = (no_fold or "") if text.startswith(CONSTANT) else ""
                flow.freeze(ids[hit], NONZERO.format(carry=text, node=call.node.name) + why, REMEDY)
    if no_fold is None and any(f.carry is not None and (f.carry != 0).any() for f in folded):
        flow.folds[call.node] = tuple(folded)
    if b.static and not a.static:
        flow.consume(b.axes[kb])
    if a.static and not b.static:
        flow.consume(a.axes[ka])
    return tuple(out)


def bias_takes(call: Call) -> str | None:
    """None where the call's bias can take over constants that its input holds; else why it cannot."""
    if not (_own_tensor(call["weight"]) and _own_tensor(call["bias"])):
        return f", and `{call.node.name}` has no bias of its own to take that over"
    if call.get("groups", 1) != 1:
        return f", and `{call.node.name}` is grouped"
    padding = call.get("padding", 0)
    if padding == "same" or any(padding if isinstance(padding, (list, tuple)) else ()):
        return f", and less at the border, which `{call.node.name}` pads with zeros"
    return None


def _own_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and len(node.users) == 1


REMEDY = "keep zero at zero between the two layers (for example ReLU, SiLU or GELU in place of an op with f(0) != 0)"


def _carries(carry: float) -> str:
    if math.isnan(carry):
        return "a value that depends on the other units"
    return "NaN or infinity" if math.isinf(carry) else f"{CONSTANT} {carry:.4g}"


def add_bias(flow: Flow, axis: Axis, bias: Axis) -> Axis:
    """``axis`` plus a bias along it; zero where both are."""
    return tuple(tied.factor(sum_of) for tied in flow.tie([axis, bias]))


def sum_of(carries: Sequence[Carry]) -> Carry:
    return np.where(np.isinf(np.stack(carries)).any(axis=0), np.inf, np.sum(carries, axis=0))


def _others(axes: Sequence[Axis], biased: bool) -> list[Axis]:
    """The axes that a contraction passes on: a zero slice sums to zero, to which a bias may be added."""
    return [forget(a) if biased else keep_zero(a) for a in axes]


# ---- linear ------------------------------------------------------------------------------------------------------


def _linear(flow: Flow, call: Call) -> Label:
    x, w = flow.of(call["input"]), flow.of(call["weight"])
    bias = flow.of(call["bias"]) if call["bias"] is not None else None
    contract(flow, call, x, -1, w, -1, bias_takes(call))
    static = x.static and w.static and (bias is None or bias.static)
    if len(w.axes) == 1:
        return Label(tuple(_others(x.axes[:-1], bias is not None)), static)
    out = keep_zero(w.axes[0])
    if bias is not None and bias.axes:
        out = add_bias(flow, out, bias.axes[0]) if axis_size(bias.axes[0]) == axis_size(out) else forget(out)
    return Label((*_others(x.axes[:-1], bias is not None), out), static)


def _linear_macs(call: Call, flow: Flow) -> Macs:
    return Macs(1, (*flow.of(call.node).axes, flow.of(call["weight"]).axes[-1]))


def _bilinear(flow: Flow, call: Call) -> Label:
    """out[o] = sum_ij a[i] w[o, i, j] b[j] + bias[o]."""
    a, b, w = flow.of(call["input1"]), flow.of(call["input2"]), flow.of(call["weight"])
    contract(flow, call, a, -1, w, 1)
    contract(flow, call, b, -1, w, 2)
    biased = call["bias"] is not None
    lead = [tied.factor(_either_zero) for k in range(len(a.axes) - 1) for tied in flow.tie([a.axes[k], b.axes[k]])]
    out = keep_zero(w.axes[0])
    if biased:
        out = add_bias(flow, out, flow.of(call["bias"]).axes[0])
    return Label((*_others([(f,) for f in lead], biased), out), a.static and b.static and w.static)


def _bilinear_macs(call: Call, flow: Flow) -> Macs:
    return Macs(1, (*flow.of(call.node).axes, *flow.of(call["weight"]).axes[1:]))


row("aten.bilinear", labels=_bilinear, macs=_bilinear_macs, roles={"weight": ("out", "in"), "bias": ("out",)})
row(
    "aten.linear", labels=_linear, macs=_linear_macs, roles={"weight": ("out", "in"), "bias": ("out",)}, columns=LINEAR
)  # fmt: skip


# ---- convolution -------------------------------------------------------------------------------------------------


def _conv(flow: Flow, call: Call) -> Label:
    return _convolution(flow, call, transposed=False)


def _conv_transpose(flow: Flow, call: Call) -> Label:
    return _convolution(flow, call, transposed=True)


def _convolution(flow: Flow, call: Call, transposed: bool) -> Label:
    """Channels only: the window of the kernel and the positions in space are free.

    With groups, input and output channels are grids (group, channel in the group); groups leave whole, and a channel
    leaves at the same place of every group.
    """
    x, w, groups = flow.of(call["input"]), flow.of(call["weight"]), call["groups"]
    batched = len(call.out.shape) == len(w.axes)
    at = 1 if batched else 0
    for axis in w.axes[2:]:
        flow.freeze_axis(axis, "is a position in the kernel's window")
    for axis in x.axes[at + 1 :]:
        flow.freeze_axis(axis, f"is an axis that `{call.node.name}` slides its window along")
    inner, outer = (w.axes[0], w.axes[1]) if transposed else (w.axes[1], w.axes[0])
    if groups == 1:
        contract(flow, call, x, at, w, 0 if transposed else 1, PLAIN if transposed else bias_takes(call))
        out = keep_zero(outer)
    else:
        x_group, x_inner = regroup(flow, [x.axes[at]], [groups, axis_size(x.axes[at]) // groups])
        if transposed:
            w_group, w_inner = regroup(flow, [inner], [groups, axis_size(inner) // groups])
            w_outer = outer
        else:
            w_group, w_outer = regroup(flow, [outer], [groups, axis_size(outer) // groups])
            w_inner = inner
        tied = flow.tie([x_group, w_group], "belongs to a group of channels that no parameter makes")
        group = tuple(t.factor(_either_zero) for t in tied)
        contract(flow, call, Label((x_inner,), x.static), 0, Label((w_inner,), w.static), 0)
        out = (*group, *keep_zero(w_outer))
    if call["bias"] is not None:
        out = add_bias(flow, out, flow.of(call["bias"]).axes[0])
    lead = _others(x.axes[:at], call["bias"] is not None)
    space = tuple(free(size) for size in call.out.shape[at + 1 :])
    return Label((*lead, out, *space), x.static and w.static)


def _conv_macs(call: Call, flow: Flow) -> Macs:
    out, w = flow.of(call.node), flow.of(call["weight"])
    return Macs(1, (*out.axes, *w.axes[1:]))


def _conv_transpose_macs(call: Call, flow: Flow) -> Macs:
    x, w = flow.of(call["input"]), flow.of(call["weight"])
    return Macs(1, (*x.axes, *w.axes[1:]))


def _conv_rewrite(call: Call, cut: Cut) -> Rewrite:
    """The number of groups that stay: kept channels over kept channels per group."""
    groups = call["groups"]
    if groups == 1:
        return Rewrite({})
    x, w = cut.of(call["input"]), cut.of(call["weight"])
    at = 1 if len(cut.out(call).axes) == len(w.axes) else 0
    return Rewrite({"groups": cut.count(x.axes[at]) // cut.count(w.axes[1])})


def _conv_transpose_rewrite(call: Call, cut: Cut) -> Rewrite:
    groups = call["groups"]
    if groups == 1:
        return Rewrite({})
    w, out = cut.of(call["weight"]), cut.out(call)
    at = 1 if len(out.axes) == len(w.axes) else 0
    return Rewrite({"groups": cut.count(out.axes[at]) // cut.count(w.axes[1])})


POSITION = "nothing: it counts positions, and a convolution reads the neighbours of each"

row(
    "aten.conv1d", "aten.conv2d", "aten.conv3d",
    labels=_conv, macs=_conv_macs, rewrite=_conv_rewrite, columns=CONVOLUTION,
    roles={"weight": ("out", "in", "window"), "bias": ("out",)}, remedy=POSITION,
)  # fmt: skip
row(
    "aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d",
    labels=_conv_transpose, macs=_conv_transpose_macs, rewrite=_conv_transpose_rewrite,
    roles={"weight": ("in", "out", "window"), "bias": ("out",)}, remedy=POSITION,
)  # fmt: skip


# ---- matrix products ---------------------------------------------------------------------------------------------


def broadcast_lead(flow: Flow, a: Sequence[Axis], b: Sequence[Axis]) -> list[Axis]:
    """Batch axes of a matrix product: tied where both have them; zero where either operand is zero."""
    rank = max(len(a), len(b))
    out: list[Axis] = []
    for k in range(-rank, 0):
        own = [axes[k] for axes in (a, b) if -k <= len(axes) and axis_size(axes[k]) != 1]
        if len(own) < 2:
            out.append(keep_zero(own[0]) if own else ())
            continue
        out.append(tuple(t.factor(_either_zero) for t in flow.tie(own)))
    return out


def _either_zero(carries: Sequence[Carry]) -> Carry:
    zero = np.where(np.any([c == 0 for c in carries], axis=0), 0.0, UNKNOWN)
    return np.where(np.any([np.isinf(c) for c in carries], axis=0), POISON, zero)


def product(flow: Flow, call: Call, a: Label, b: Label) -> Label:
    """The label of ``a @ b`` with torch's broadcasting rules."""
    contract(flow, call, a, -1, b, -2 if len(b.axes) > 1 else 0)
    rows = [keep_zero(a.axes[-2])] if len(a.axes) > 1 else []
    columns = [keep_zero(b.axes[-1])] if len(b.axes) > 1 else []
    return Label((*broadcast_lead(flow, a.axes[:-2], b.axes[:-2]), *rows, *columns), a.static and b.static)


def _matmul(flow: Flow, call: Call) -> Label:
    (_, a), (_, b) = call.tensors()[:2]
    return product(flow, call, flow.of(a), flow.of(b))


def _matmul_macs(call: Call, flow: Flow) -> Macs:
    a = call.tensors()[0][1]
    return Macs(1, (*flow.of(call.node).axes, flow.of(a).axes[-1]))


def _addmm(flow: Flow, call: Call) -> Label:
    names = [name for name, _ in call.tensors()]
    a, b = flow.of(call[names[1]]), flow.of(call[names[2]])
    result, bias = product(flow, call, a, b), flow.of(call["self"])
    lead = len(result.axes) - len(bias.axes)
    axes = []
    for k, axis in enumerate(result.axes):
        own = bias.axes[k - lead] if k >= lead else ()
        axes.append(add_bias(flow, axis, own) if axis_size(own) != 1 else forget(axis))
    return Label(tuple(axes), result.static and bias.static)


def _addmm_macs(call: Call, flow: Flow) -> Macs:
    a = call.tensors()[1][1]
    return Macs(1, (*flow.of(call.node).axes, flow.of(a).axes[-1]))


row("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot", labels=_matmul, macs=_matmul_macs)
row("aten.addmm", "aten.baddbmm", labels=_addmm, macs=_addmm_macs)
