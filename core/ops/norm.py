"""Normalisations. Those that keep statistics per channel let channels go; those that average over units keep the count.

A layer norm over C positions of which C' stay, the others being zero, is the layer norm over C of what stays and C - C'
zeros: the cut graph appends them. So is an RMS norm, and a group norm within its groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from coppice.core.calls import Call
from coppice.core.graph import value_of
from coppice.core.labels import POISON, UNKNOWN, Axis, Carry, Flow, Label, axis_size, forget, free, ids_of
from coppice.core.ops import Average, Cut, Rewrite, row
from coppice.core.ops.insert import insert, keep_first, pad_end
from coppice.core.ops.views import regroup

aten = torch.ops.aten
AVERAGED = "is averaged over by `{node}`, whose mean and variance change when a unit leaves"
MOVED = "is averaged over by `{node}`, and is not zero there once it is removed"
ZERO = "let only parameters, and ops that keep zero at zero, stand between the layers that make it and the norm"


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
    _freeze_averaged(flow, call, x, at)
    if axis_size(channel) != 1:
        axes[at] = per_channel(flow, channel, vectors)
    if call.get("running_mean") is not None:
        flow.statistics += ids_of(flow.of(call["running_mean"]).axes[0])
    if call.get("running_var") is not None:
        flow.consume(flow.of(call["running_var"]).axes[0])
    return Label(tuple(axes), x.static)


def _freeze_averaged(flow: Flow, call: Call, x: Label, at: int) -> None:
    """Hold what statistics of the batch itself average over: a standardised weight's inputs, positions of an image."""
    sample = "use_input_stats" in call.names  # instance norm, whose batch axis stays apart
    if call.get("training") or call.get("use_input_stats"):
        for axis in (*(() if sample else x.axes[:at]), *x.axes[at + 1 :]):
            flow.freeze_axis(axis, AVERAGED.format(node=call.node.name), REMEDY)


def _batch_norm_parts(flow: Flow, call: Call) -> tuple[Label, ...]:
    """The decomposed form: the result and two statistics that eval mode leaves empty."""
    values = call.node.meta["value"]
    return (_normed(flow, call), *(Label(tuple(free(size) for size in value.shape)) for value in values[1:]))


def _layer_norm(flow: Flow, call: Call) -> Label:
    return _averaging(flow, call, centred=True)


def _rms_norm(flow: Flow, call: Call) -> Label:
    return _averaging(flow, call, centred=False)


def _averaging(flow: Flow, call: Call, centred: bool) -> Label:
    x, count = flow.of(call["input"]), len(call["normalized_shape"])
    split = len(x.axes) - count
    given = {name: flow.of(call[name]) for name in ("weight", "bias") if call.get(name) is not None}
    axes = [forget(axis) for axis in x.axes[:split]]
    for k, axis in enumerate(x.axes[split:]):
        average(flow, call, axis)
        axes.append(affine(flow, axis, {name: label.axes[k] for name, label in given.items()}, centred))
    return Label(tuple(axes), x.static and all(label.static for label in given.values()))


def affine(flow: Flow, axis: Axis, vectors: dict[str, Axis], centred: bool) -> Axis:
    """An averaged axis after its norm: a removed position is zero where x is or, with the mean off, where weight is."""

    def carry(carries: tuple[Carry, ...]) -> Carry:
        own = dict(zip(("x", *vectors), carries, strict=True))
        nothing = np.zeros(len(own["x"]), bool)
        scaled = (own["weight"] == 0 if "weight" in own else nothing) if centred else own["x"] == 0
        shifted = own["bias"] != 0 if "bias" in own else nothing
        return np.where(np.isinf(np.stack(carries)).any(axis=0), POISON, np.where(scaled & ~shifted, 0.0, UNKNOWN))

    if axis_size(axis) == 1:
        return axis
    return tuple(tied.factor(carry) for tied in flow.tie([axis, *vectors.values()]))


def average(flow: Flow, call: Call, axis: Axis) -> None:
    """Freeze what an average over ``axis`` with the original count would miss: whatever is not zero once removed."""
    if flow.residual == "freeze":
        flow.freeze_axis(axis, AVERAGED.format(node=call.node.name), REMEDY)
        return
    for factor in axis:
        if factor.ids is not None and factor.carry is not None:
            flow.freeze(factor.ids[factor.carry != 0], MOVED.format(node=call.node.name), ZERO)


def _normalised(call: Call, of: Callable[[fx.Node], Label]) -> tuple[Axis, ...]:
    return of(call["input"]).axes[-len(call["normalized_shape"]) :]


def _keep_normalised(graph: fx.Graph, node: fx.Node, present: Sequence[int], full: Sequence[int]) -> fx.Node:
    axes = range(-len(full), 0)
    return _over_zeros(graph, node, present, full, axes, axes)


def _over_zeros(
    graph: fx.Graph,
    node: fx.Node,
    present: Sequence[int],
    full: Sequence[int],
    axes: Sequence[int],
    vector_axes: Sequence[int],
) -> fx.Node:
    """Append zeros along ``axes`` of the input and ``vector_axes`` of weight and bias; drop them from the result."""
    call = Call(node)
    with graph.inserting_before(node):
        wide = {"input": pad_end(graph, call["input"], axes, full, call["input"])}
        for name in ("weight", "bias"):
            if call.get(name) is not None:
                wide[name] = pad_end(graph, call[name], vector_axes, full, call[name])
    node.args, node.kwargs = call.with_arguments(wide)
    node.meta["value"] = replace(call.out, shape=value_of(wide["input"]).shape)
    cut = [k for k, (p, f) in enumerate(zip(present, full, strict=True)) if p != f]
    with graph.inserting_after(node):
        return keep_first(graph, node, [axes[k] for k in cut], [present[k] for k in cut], node)


def _layer_norm_of_present(graph: fx.Graph, node: fx.Node, present: Sequence[int], full: Sequence[int]) -> fx.Node:
    return _centred_of_present(graph, node, range(-len(full), 0), math.prod(full) / math.prod(present))


def _centred_of_present(graph: fx.Graph, node: fx.Node, dims: Sequence[int], ratio: float) -> fx.Node:
    """(x - m) / sqrt(q - m^2 + eps) w + b: m and q are the means of x and x^2 over all positions, times ``ratio``."""
    call = Call(node)
    x, shape = call["input"], call.out.shape
    one = tuple(1 if k - len(shape) in dims else size for k, size in enumerate(shape))

    def step(op: Any, *args: Any, over: Sequence[int] = shape) -> fx.Node:
        return insert(graph, op, args, over, node)

    with graph.inserting_before(node):
        mean = step(aten.mul.Tensor, step(aten.mean.dim, x, list(dims), True, over=one), ratio, over=one)
        square = step(aten.mean.dim, step(aten.mul.Tensor, x, x), list(dims), True, over=one)
        square = step(aten.mul.Tensor, square, ratio, over=one)
        variance = step(aten.sub.Tensor, square, step(aten.mul.Tensor, mean, mean, over=one), over=one)
        root = step(aten.rsqrt.default, step(aten.add.Tensor, variance, call["eps"], over=one), over=one)
        y = step(aten.mul.Tensor, step(aten.sub.Tensor, x, mean), root)
        for op, name in ((aten.mul.Tensor, "weight"), (aten.add.Tensor, "bias")):
            if call[name] is not None:
                y = step(op, y, _over(graph, call[name], len(dims), node))
    graph.erase_node(node)
    return y


def _over(graph: fx.Graph, vector: fx.Node, rank: int, like: fx.Node) -> fx.Node:
    """``vector`` with trailing axes of size 1, so that its first axis meets the first of the last ``rank`` axes."""
    size = value_of(vector).shape
    if len(size) == rank:
        return vector
    shape = [*size, *[1] * (rank - len(size))]
    return insert(graph, aten.reshape.default, (vector, shape), shape, like)


def _rms_norm_of_present(graph: fx.Graph, node: fx.Node, present: Sequence[int], full: Sequence[int]) -> fx.Node:
    """With a = sqrt(full / present), the norm of a x over all positions has the mean square of x over those present."""
    call, ratio = Call(node), math.sqrt(math.prod(full) / math.prod(present))
    with graph.inserting_before(node):
        scaled = insert(graph, aten.mul.Tensor, (call["input"], ratio), call.out.shape, node)
    node.args, node.kwargs = call.with_arguments({"input": scaled})
    with graph.inserting_after(node):
        return insert(graph, aten.mul.Tensor, (node, 1 / ratio), call.out.shape, node)


LAYER = Average(_normalised, _keep_normalised, _layer_norm_of_present, sizes="normalized_shape")
RMS = Average(_normalised, _keep_normalised, _rms_norm_of_present, sizes="normalized_shape")


REMEDY = "batch norm keeps statistics per channel and would let units leave"


def _group_norm(flow: Flow, call: Call) -> Label:
    """Whole groups may leave; within one, the statistics hold every channel, unless it is the only group."""
    x, groups = flow.of(call["input"]), call["num_groups"]
    channel = x.axes[1]
    vectors = {n: flow.of(call[n]).axes[0] for n in ("weight", "bias") if call.get(n) is not None}
    axes = [forget(axis) for axis in x.axes]
    for axis in x.axes[2:]:
        flow.freeze_axis(axis, AVERAGED.format(node=call.node.name), REMEDY)
    if groups == 1:
        average(flow, call, channel)
        axes[1] = affine(flow, channel, vectors, centred=True)
    else:
        outer, inner = regroup(flow, [channel], [groups, axis_size(channel) // groups])
        flow.freeze_axis(inner, AVERAGED.format(node=call.node.name), REMEDY)
        axes[1] = per_channel(flow, (*outer, *inner), vectors) if axis_size(channel) > 1 else ()
    return Label(tuple(axes), x.static)


def _grouped(call: Call, of: Callable[[fx.Node], Label]) -> tuple[Axis, ...]:
    return (of(call["input"]).axes[1],) if call["num_groups"] == 1 else ()


def _keep_group(graph: fx.Graph, node: fx.Node, present: Sequence[int], full: Sequence[int]) -> fx.Node:
    return _over_zeros(graph, node, present, full, [1], [0])


def _group_norm_of_present(graph: fx.Graph, node: fx.Node, present: Sequence[int], full: Sequence[int]) -> fx.Node:
    rank = len(value_of(node).shape)
    return _centred_of_present(graph, node, range(1 - rank, 0), math.prod(full) / math.prod(present))


def _group_norm_rewrite(call: Call, cut: Cut) -> Rewrite:
    channel, groups = cut.of(call["input"]).axes[1], call["num_groups"]
    if groups == 1:
        return Rewrite({})
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

MERGE = "merge the norm into a plain weight: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"

row("aten._native_batch_norm_legit_no_training", labels=_batch_norm_parts, roles=CHANNEL)
row("aten.batch_norm", "aten.instance_norm", labels=_normed, roles=CHANNEL)
row("aten.layer_norm", labels=_layer_norm, roles=CHANNEL, average=LAYER)
row("aten.rms_norm", labels=_rms_norm, roles=CHANNEL, average=RMS)
row(
    "aten.group_norm", labels=_group_norm, rewrite=_group_norm_rewrite, roles=CHANNEL,
    average=Average(_grouped, _keep_group, _group_norm_of_present),
)  # fmt: skip
row("aten._weight_norm", labels=_weight_norm, remedy=MERGE)
