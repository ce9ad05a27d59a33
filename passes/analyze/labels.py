"""The label walk: every axis of every value gets its factors, and the op table states what ties them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from coppice.core.calls import Call, op_name
from coppice.core.errors import CoppiceError
from coppice.core.graph import Graph, Value, is_tensor
from coppice.core.labels import UNKNOWN, Flow, Ids, Label, Reason, free, labelled
from coppice.core.ops import lookup
from coppice.core.ops.probe import NO_ROW, REMEDY, Labels, probe
from coppice.core.solve import Bools

OUTPUT = "is part of the model's output, whose shape is kept"


@dataclass(frozen=True, eq=False)
class Analysis:
    """The facts of one walk, stamped with the graph's version.

    ``axes[name][k]`` are the variables along axis k of tensor ``name`` (None where the axis has size 1 or the tensor is
    not floating point); ``masked`` says of every variable whether its slice is zeroed when its unit is removed (a
    consumer's slice is only cut).
    """

    graph: Graph
    version: int
    flow: Flow
    axes: dict[str, tuple[Ids | None, ...]]
    masked: Bools

    @property
    def labels(self) -> dict[fx.Node, Label | tuple[Label, ...]]:
        return self.flow.labels


def analyze(graph: Graph, residual: str = "exact") -> Analysis:
    """Walk ``graph`` once, in order; near-linear in the number of nodes and units.

    ``residual`` says what an average over units means once some are gone (`coppice.core.labels.RESIDUAL`).
    """
    flow = Flow(residual=residual)
    axes: dict[str, tuple[Ids | None, ...]] = {}
    for node in graph.fx.nodes:
        flow.here = Reason("", node.name, str(node.meta.get("source", "")))
        if node.op == "placeholder":
            value = node.meta["value"]
            origin = Reason(f"is tied to an axis of the model's input `{node.target}`", node.name)
            flow.labels[node] = Label(tuple(free(s, origin) for s in value.shape) if isinstance(value, Value) else ())
        elif node.op == "get_attr":
            flow.labels[node] = _tensor(flow, graph.tensors[str(node.target)], str(node.target), axes)
        elif node.op == "call_function":
            _call(flow, node)
        else:
            for leaf in node.all_input_nodes:
                if is_tensor(leaf):
                    flow.freeze_label(flow.of(leaf), OUTPUT)
    return Analysis(graph, graph.version, flow, axes, _masked(graph, flow, axes))


def _tensor(flow: Flow, tensor: torch.Tensor, name: str, axes: dict[str, tuple[Ids | None, ...]]) -> Label:
    if not tensor.is_floating_point() or 0 in tensor.shape:
        return Label(tuple(free(size) for size in tensor.shape), static=True)
    carry = 0.0 if _makes_units(tensor) else UNKNOWN
    label = Label(tuple(flow.fresh_axis(size, carry) for size in tensor.shape), static=True)
    axes[name] = tuple(axis[0].ids if axis else None for axis in label.axes)
    return label


def _call(flow: Flow, node: fx.Node) -> None:
    value = node.meta["value"]
    call = Call(node)
    op = lookup(node.target)
    if isinstance(value, Value) and value.dtype is None:
        _size(flow, node)
        return
    already = len(flow.consumed)
    labels: Labels | str = NO_ROW.format(op=op_name(node.target))
    if isinstance(value, (Value, tuple)) or (op is not None and value is None):
        labels = op.labels if op is not None else probe(flow, call)
    if isinstance(labels, str):
        _unknown(flow, call, labels)
    else:
        try:
            flow.labels[node] = labels(flow, call)
        except CoppiceError:
            raise
        except (LookupError, ValueError, TypeError, AssertionError, AttributeError, ArithmeticError) as error:
            _unknown(flow, call, f"reaches `{call.node.name}` in a form its row does not cover ({error})")
    if op is None or not op.transport:
        fresh = {id(ids) for ids in flow.consumed[already:]}
        for operand in node.all_input_nodes:
            label = flow.labels.get(operand)
            if isinstance(label, Label) and label.static:
                flow.produced += [
                    f.ids for axis in label.axes for f in axis if f.ids is not None and id(f.ids) not in fresh
                ]


def _size(flow: Flow, node: fx.Node) -> None:
    """A symbolic size read off a tensor: had its axis units, the number would change with them."""
    for operand in node.all_input_nodes:
        label = flow.labels.get(operand)
        if isinstance(label, Label) and len(node.args) > 1 and isinstance(node.args[1], int):
            axis = label.axes[node.args[1]]
            if labelled(axis):
                flow.freeze_axis(axis, f"has its size read by `{node.name}`")


def _unknown(flow: Flow, call: Call, why: str) -> None:
    for operand in call.node.all_input_nodes:
        label = flow.labels.get(operand)
        for part in label if isinstance(label, tuple) else (label,) if label else ():
            flow.freeze_label(part, why, REMEDY)
    value = call.node.meta["value"]
    why_not = Reason(why, call.node.name, call.source, REMEDY)
    made = [Label(tuple(free(s, why_not) for s in v.shape) if isinstance(v, Value) else ()) for v in _leaves(value)]
    flow.labels[call.node] = tuple(made) if isinstance(value, tuple) else made[0]


def _leaves(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _makes_units(tensor: torch.Tensor) -> bool:
    """Whether the slices of ``tensor`` are zeroed with their unit: those of parameters, and of one-dimensional buffers.

    Such buffers stand for one number a unit, a frozen norm's weight say. Other buffers are cut and never zeroed.
    """
    return isinstance(tensor, nn.Parameter) or tensor.ndim == 1


def _masked(graph: Graph, flow: Flow, axes: dict[str, tuple[Ids | None, ...]]) -> Bools:
    """Variables whose own slice must be zeroed; a grid passes the mark both ways. Too many marks are harmless.

    Of buffers, only those that make units are zeroed (`_makes_units`).
    """
    masked = np.zeros(flow.count, bool)
    for ids in flow.produced:
        masked[ids] = True
    for grid in flow.grids:
        rows = masked[grid.flat].reshape(grid.shape)
        for k, part in enumerate(grid.parts):
            masked[part] |= rows.any(axis=tuple(j for j in range(rows.ndim) if j != k))
    for grid in reversed(flow.grids):
        total = np.zeros(grid.shape, bool)
        for k, part in enumerate(grid.parts):
            total |= masked[part].reshape([-1 if j == k else 1 for j in range(len(grid.parts))])
        masked[grid.flat] |= total.reshape(-1)
    for name, own in axes.items():
        if not _makes_units(graph.tensors[name]):
            for axis in own:
                if axis is not None:
                    masked[axis] = False
    for ids in flow.statistics:
        masked[ids] = True
    return masked
