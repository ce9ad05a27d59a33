"""Attention and einsum: products with several contracted and tied axes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx

from coppice.core.calls import Call
from coppice.core.labels import Axis, Flow, Label, axis_size, forget, free, keep_zero, labelled
from coppice.core.ops import Cut, Macs, Rewrite, row
from coppice.core.ops.contract import NONZERO, REMEDY, broadcast_lead, contract
from coppice.core.ops.views import regroup

# ---- attention ---------------------------------------------------------------------------------------------------


def _attention(flow: Flow, call: Call) -> Label:
    """softmax(q k^T * scale + mask) v: heads are tied, head dimensions contracted, keys and queries pass through."""
    q, k, v = (flow.of(call[name]) for name in ("query", "key", "value"))
    head = len(q.axes) - 3
    if head >= 0 and call.get("enable_gqa") and axis_size(q.axes[head]) != axis_size(k.axes[head]):
        shared = axis_size(k.axes[head])
        rows, repeats = regroup(flow, [q.axes[head]], [shared, axis_size(q.axes[head]) // shared])
        q_lead, extra = [*q.axes[:head], rows], repeats
    else:
        q_lead, extra = list(q.axes[: len(q.axes) - 2]), ()
    contract(flow, call, q, -1, k, -1)
    broadcast_lead(flow, q_lead, k.axes[:-2])
    lead = broadcast_lead(flow, q_lead, v.axes[:-2])
    flow.tie([k.axes[-2], v.axes[-2]])
    flow.freeze_axis(k.axes[-2], "is a position that attention is normalised over")
    lead = [
        _from(v_axis, axis) for v_axis, axis in zip(_pad(v.axes[:-2], len(lead)), lead, strict=True)
    ]  # only a zero value vector makes the result zero
    if extra and lead:
        lead[-1] = (*lead[-1], *forget(extra))
    mask = call.get("attn_mask")
    if isinstance(mask, fx.Node):
        _tie_mask(flow, flow.of(mask).axes, [*lead, q.axes[-2], k.axes[-2]])
    return Label((*lead, forget(q.axes[-2]), keep_zero(v.axes[-1])), q.static and k.static and v.static)


def _pad(axes: Sequence[Axis], rank: int) -> list[Axis]:
    return [()] * (rank - len(axes)) + list(axes)


def _from(source: Axis, axis: Axis) -> Axis:
    """``axis`` with the carries of ``source`` where that is not broadcast."""
    if axis_size(source) != axis_size(axis) or [f.size for f in source] != [f.size for f in axis]:
        return forget(axis)
    return tuple(f if s.carry is None else f.with_carry(s.carry) for s, f in zip(keep_zero(source), axis, strict=True))


def _tie_mask(flow: Flow, mask: Sequence[Axis], scores: Sequence[Axis]) -> None:
    for own, axis in zip(reversed(mask), reversed(scores), strict=False):
        if axis_size(own) != 1 and (labelled(own) or labelled(axis)):
            flow.tie([own, axis])


def _attention_macs(call: Call, flow: Flow) -> Macs:
    q, k = flow.of(call["query"]), flow.of(call["key"])
    return Macs(2, (*q.axes, k.axes[-2]))


def _attention_rewrite(call: Call, cut: Cut) -> Rewrite:
    """The default scale is 1/sqrt(head dimension); it must stay that of the full model."""
    depth = cut.of(call["query"]).axes[-1]
    if call.get("scale") is not None or cut.count(depth) == axis_size(depth):
        return Rewrite({})
    return Rewrite({"scale": 1.0 / math.sqrt(axis_size(depth))})


row("aten.scaled_dot_product_attention", labels=_attention, macs=_attention_macs, rewrite=_attention_rewrite)


# ---- einsum ------------------------------------------------------------------------------------------------------


def _terms(call: Call) -> tuple[list[str], str] | None:
    text = call["equation"].replace(" ", "")
    if "." in text:
        return None
    left, arrow, right = text.partition("->")
    inputs = left.split(",")
    if not arrow:
        joined = left.replace(",", "")
        right = "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    repeated = any(len(set(term)) != len(term) for term in inputs)
    return None if repeated or len(inputs) > 2 else (inputs, right)


def _einsum(flow: Flow, call: Call) -> Label:
    terms, operands = _terms(call), [flow.of(node) for node in call["tensors"]]
    static = all(label.static for label in operands)
    if terms is None:
        for label in operands:
            flow.freeze_label(label, "goes through an einsum with an ellipsis, a diagonal or three operands")
        return Label(tuple(free(size) for size in call.out.shape), static)
    inputs, out = terms
    where = {c: [(t, inputs[t].index(c)) for t in range(len(inputs)) if c in inputs[t]] for c in set("".join(inputs))}
    axes: dict[str, Axis] = {}
    for c, places in sorted(where.items()):
        own = [operands[t].axes[k] for t, k in places]
        wide = [(p, a) for p, a in zip(places, own, strict=True) if axis_size(a) != 1]
        if c not in out and len(wide) == 2:
            (t, k), (u, j) = places
            axes[c] = contract(flow, call, operands[t], k, operands[u], j)
        elif c not in out and wide:
            _sum_alone(flow, call, wide[0][1])
            axes[c] = wide[0][1]
        else:
            axes[c] = broadcast_lead(flow, [own[0]], [own[-1]])[0] if len(own) > 1 else keep_zero(own[0])
    return Label(tuple(axes[c] for c in out), static)


def _sum_alone(flow: Flow, call: Call, axis: Axis) -> None:
    for factor in axis:
        if factor.ids is not None and factor.carry is not None:
            flow.freeze(factor.ids[factor.carry != 0], NONZERO.format(carry="a value", node=call.node.name), REMEDY)


def _einsum_macs(call: Call, flow: Flow) -> Macs:
    terms, operands = _terms(call), [flow.of(node) for node in call["tensors"]]
    if terms is None or len(operands) < 2:
        return Macs(0, ())
    sizes: dict[str, Axis] = {}
    for term, label in zip(terms[0], operands, strict=True):
        for c, axis in zip(term, label.axes, strict=True):
            if axis_size(axis) >= axis_size(sizes.get(c, ())):
                sizes[c] = axis
    return Macs(1, tuple(sizes.values()))


row("aten.einsum", labels=_einsum, macs=_einsum_macs)
