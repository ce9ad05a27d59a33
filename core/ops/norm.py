"""Normalisations. Those that keep statistics per channel let channels go; those that average over units hold them."""

from __future__ import annotations

import numpy as np

from coppice.core.calls import Call
from coppice.core.labels import POISON, UNKNOWN, Axis, Carry, Flow, Label, axis_size, forget, free, ids_of
from coppice.core.ops import Cut, Rewrite, row
from coppice.core.ops.views import regroup

AVERAGED = "is averaged over by `{node}`, whose mean and variance change when a unit leaves"


def per_channel(flow: Flow, channel: Axis, vectors: dict[str, Axis]) -> Axis:
    """The channel axis after ``(x - mean) / std * weight + bias``: zero where bias and weight are, or bias, x and mean.

    A running mean that is a tensor of the model is zeroed with its unit.
    """
    names = ["x", *vectors]

    def carry(carries: tuple[Carry, ...]) -> Carry:
        own = dict(zip(names, carries, strict=True))
        nothing = np.zeros(len(own["x"]), bool)
        scaled = (own["x"] == 0) | (own["weight"] == 0 if "weight" in own else nothing)
        shifted = own["bias"] != 0 if "bias" in own else nothing
        return np.where(np.isinf(np.stack(carries)).any(axis=0), POISON, np.where(scaled & ~shifted, 0.0, UNKNOWN))

    return tuple(tied.factor(carry) for tied in flow.tie([channel, *vectors.values()]))


def _normed(flow: Flow, call: Call) -> Label:
    """Statistics per channel (axis 1), running or of the batch; zero running mean and affine come with the unit."""
    x = flow.of(call["input"])
    at = 1 if len(x.axes) > 1 else 0
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = {name: flow.of(call[name]).axes[0] for name in names if call.get(name) is not None}
    axes = [forget(axis) for axis in x.axes]
    channel = x.axes[at]
    if axis_size(channel) != 1:
        axes[at] = per_channel(flow, channel, vectors)
    if call.get("running_mean") is not None:
        flow.statistics += ids_of(flow.of(call["running_mean"]).axes[0])
    if call.get("running_var") is not None:
        flow.consume(flow.of(call["running_var"]).axes[0])
    return Label(tuple(axes), x.static)


def _batch_norm_parts(flow: Flow, call: Call) -> tuple[Label, ...]:
    """The decomposed form: the result and two statistics that eval mode leaves empty."""
    values = call.node.meta["value"]
    return (_normed(flow, call), *(Label(tuple(free(size) for size in value.shape)) for value in values[1:]))


def _layer_norm(flow: Flow, call: Call) -> Label:
    x, count = flow.of(call["input"]), len(call["normalized_shape"])
    return _averaging(flow, call, x, count, ("weight", "bias"))


def _averaging(flow: Flow, call: Call, x: Label, count: int, names: tuple[str, ...]) -> Label:
    split = len(x.axes) - count
    why = AVERAGED.format(node=call.node.name)
    for axis in x.axes[split:]:
        flow.freeze_axis(axis, why, REMEDY)
    for name in names:
        if call.get(name) is not None:
            for own, axis in zip(flow.of(call[name]).axes, x.axes[split:], strict=True):
                if axis_size(own) != 1:
                    flow.tie([own, axis])
                flow.freeze_axis(own, why, REMEDY)
    lead = [forget(axis) for axis in x.axes[:split]]
    return Label((*lead, *x.axes[split:]), x.static)


REMEDY = "batch norm keeps statistics per channel and would let units leave"


def _group_norm(flow: Flow, call: Call) -> Label:
    """Whole groups may leave; within one, the statistics hold every channel."""
    x, groups = flow.of(call["input"]), call["num_groups"]
    channel = x.axes[1]
    outer, inner = regroup(flow, [channel], [groups, axis_size(channel) // groups])
    flow.freeze_axis(inner, AVERAGED.format(node=call.node.name), REMEDY)
    affine = {n: flow.of(call[n]).axes[0] for n in ("weight", "bias") if call.get(n) is not None}
    axes = [forget(axis) for axis in x.axes]
    axes[1] = per_channel(flow, (*outer, *inner), affine) if axis_size(channel) > 1 else ()
    return Label(tuple(axes), x.static)


def _group_norm_rewrite(call: Call, cut: Cut) -> Rewrite:
    channel, groups = cut.of(call["input"]).axes[1], call["num_groups"]
    return Rewrite({"num_groups": groups * cut.count(channel) // axis_size(channel)})


def _weight_norm(flow: Flow, call: Call) -> Label:
    """w = g v / ||v||: zero where g is; v is cut but never masked, as 0 / 0 is no number."""
    v, g = flow.of(call["v"]), flow.of(call["g"])
    axes: list[Axis] = []
    for own, gain in zip(v.axes, g.axes, strict=True):
        if axis_size(gain) != 1:
            flow.consume(own)
            tied = flow.tie([gain, own])  # named after g, which is masked
            axes.append(tuple(t.factor(lambda c: np.zeros(len(c[0]))) for t in tied))
        else:
            flow.consume(own)
            flow.freeze_axis(own, "is part of the norm that weight normalisation divides by")
            axes.append(own)
    return Label(tuple(axes), v.static and g.static)


CHANNEL = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("channel",))

row("aten._native_batch_norm_legit_no_training", labels=_batch_norm_parts, roles=CHANNEL)
row("aten.batch_norm", "aten.instance_norm", labels=_normed, roles=CHANNEL)
row("aten.layer_norm", "aten.rms_norm", labels=_layer_norm, roles=CHANNEL)
row("aten.group_norm", labels=_group_norm, rewrite=_group_norm_rewrite, roles=CHANNEL)
row("aten._weight_norm", labels=_weight_norm)
