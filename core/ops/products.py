"""Products beside the common ones: outer products, and experts that each read their own rows."""

from __future__ import annotations

from coppice.core.calls import Call
from coppice.core.labels import Flow, Label, keep_zero
from coppice.core.ops import Macs, row
from coppice.core.ops.contract import contract


def _outer(flow: Flow, call: Call) -> Label:
    """``out[i, j] = a[i] b[j]``."""
    (_, a), (_, b) = call.tensors()[:2]
    one, two = flow.of(a), flow.of(b)
    return Label((keep_zero(one.axes[0]), keep_zero(two.axes[0])), one.static and two.static)


def _experts(flow: Flow, call: Call) -> Label:
    """Rows sorted by expert, each times its expert's matrix: (rows, in) and (experts, in, out) give (rows, out).

    Which expert a row meets is data, so experts stay; all of them lose the same inputs and outputs.
    """
    names = [name for name, _ in call.tensors()]
    x, weight = flow.of(call[names[0]]), flow.of(call[names[1]])
    flow.freeze_axis(weight.axes[0], "is an expert that the router may choose", "nothing: which expert runs is data")
    contract(flow, call, x, -1, weight, -2)
    return Label((keep_zero(x.axes[0]), keep_zero(weight.axes[-1])), x.static and weight.static)


def _experts_macs(call: Call, flow: Flow) -> Macs:
    return Macs(1, (*flow.of(call.node).axes, flow.of(call.tensors()[0][1]).axes[-1]))


row("aten.outer", "aten.ger", labels=_outer)
row("transformers.grouped_mm_fallback", labels=_experts, macs=_experts_macs)
