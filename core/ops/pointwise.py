"""Elementwise ops. One rule serves them all: torch itself is asked what the op makes of zeros and constants."""

from __future__ import annotations

import itertools
import math
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import fx

from coppice.core.calls import Call
from coppice.core.graph import is_tensor
from coppice.core.labels import (
    POISON,
    UNKNOWN,
    Axis,
    Carry,
    Flow,
    Label,
    axis_size,
    forget,
    free,
    keep_zero,
)
from coppice.core.ops import Join, row

PROBES = (-1e30, -117.25, -3.5, -1.0, -0.375, -1e-6, 0.0, 1e-6, 0.4375, 1.0, 2.75, 131.5, 1e30)
"""What an unknown finite operand is tried with, beside the numbers that the call holds (``x == 3``) and meets."""

_OPEN = 1e99  # stands for UNKNOWN where NaN could not be compared


def labels(flow: Flow, call: Call) -> Label:
    """Operands are tied along every axis where they are not broadcast."""
    operands = [(name, node, flow.of(node)) for name, node in call.tensors()]
    rank = len(call.out.shape)
    axes: list[Axis] = []
    for k in range(rank):
        present = [
            (name, axis)
            for name, _, label in operands
            if (at := k - rank + len(label.axes)) >= 0 and axis_size(axis := label.axes[at]) != 1
        ]
        if not present:
            axes.append(free(call.out.shape[k]))
            continue
        names = [name for name, _ in present]
        tied = flow.tie([axis for _, axis in present])
        axes.append(tuple(t.factor(partial(_combine, call, names)) for t in tied))
    return Label(tuple(axes), static=all(label.static for _, _, label in operands))


def _combine(call: Call, names: list[str], carries: tuple[Carry, ...]) -> Carry:
    return carry_through(call, dict(zip(names, carries, strict=True)))


def carry_through(call: Call, known: dict[str, Carry]) -> Carry:
    """What the op makes of slices that hold ``known`` numbers, the other operands being anything."""
    names = list(known)
    stacked = np.stack([known[name] for name in names])
    stacked = np.where(np.isnan(stacked), _OPEN, stacked)
    if (stacked == stacked[:, :1]).all():  # as nearly always: no need to sort wide axes
        columns, inverse = stacked[:, :1], np.zeros(stacked.shape[1], np.int64)
    else:
        columns, inverse = np.unique(stacked, axis=1, return_inverse=True)
    literals = tuple((name, _literal(value)) for name, value in call.arguments.items())
    results = [
        _evaluate(
            call.target, literals, tuple((n, v) for n, v in zip(names, column.tolist(), strict=True) if v != _OPEN)
        )
        for column in columns.T
    ]
    return np.array(results)[inverse.reshape(-1)]


def neutral(call: Call) -> tuple[fx.Node, ...]:
    """The operands of a call with two of them that leave the other one as it is where they are zero, as in a sum."""
    tensors = call.tensors()
    if len(tensors) != 2 or tensors[0][1] is tensors[1][1] or call.out.dtype is None:
        return ()
    literals = tuple((name, _literal(value)) for name, value in call.arguments.items())
    if ("size",) in [value for _, value in literals] or not call.out.dtype.is_floating_point:
        return ()
    pairs = zip(tensors, reversed(tensors), strict=True)
    return tuple(node for (name, node), (other, _) in pairs if _leaves_other(call.target, literals, name, other))


@cache
def _leaves_other(target: Any, literals: tuple[tuple[str, Any], ...], zero: str, other: str) -> bool:
    arguments = dict(literals)
    if any(not arguments[name][1].is_floating_point for name in (zero, other)):
        return False
    values = torch.tensor(PROBES, dtype=torch.float64)
    try:
        result = target(**{**arguments, zero: torch.zeros_like(values), other: values})
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return bool(torch.equal(result, values))


SUM = Join(neutral)


def _literal(value: Any) -> Any:
    """A hashable stand-in for one argument: ``("tensor", dtype)``, ``("size",)``, or the literal itself."""
    if is_tensor(value):
        return ("tensor", value.meta["value"].dtype)
    if hasattr(value, "meta"):
        return ("size",)
    return tuple(value) if isinstance(value, list) else value


@cache
def _evaluate(target: Any, literals: tuple[tuple[str, Any], ...], known: tuple[tuple[str, float], ...]) -> float:
    """The one finite number the op returns whatever its unknown operands hold; else `UNKNOWN` or `POISON`."""
    given = dict(known)
    if any(math.isinf(value) for value in given.values()):
        return POISON
    tensors = [(name, value[1]) for name, value in literals if isinstance(value, tuple) and value[:1] == ("tensor",)]
    open_names = [name for name, _ in tensors if name not in given]
    numbers = [value for _, value in literals if isinstance(value, (int, float))]
    own = tuple(float(value) for value in (*numbers, *given.values()) if math.isfinite(value))
    choices = [_probes(dtype, own) for name, dtype in tensors if name in open_names]
    trials = list(itertools.islice(itertools.product(*choices), 1 << 15))
    batch = torch.tensor(trials, dtype=torch.float64).reshape(len(trials), len(open_names))
    arguments: dict[str, Any] = {}
    for name, value in literals:
        if isinstance(value, tuple) and value[:1] == ("tensor",):
            wide = _widen(value[1])
            column = (
                batch[:, open_names.index(name)]
                if name in open_names
                else torch.full((len(trials),), given[name], dtype=torch.float64)
            )
            arguments[name] = column.to(wide)
        elif value == ("size",):
            return UNKNOWN
        else:
            arguments[name] = value
    try:
        result = target(**arguments)
    except (RuntimeError, TypeError, NotImplementedError):
        return UNKNOWN
    results = result.to(torch.float64)
    # x / 0 is as undefined before a cut as after it: where an open operand is zero, only finite results count
    results = results[torch.isfinite(results) | (batch != 0).all(dim=1)]
    if not torch.isfinite(results).all() or not len(results):
        return UNKNOWN if open_names else POISON
    return float(results[0]) if bool((results == results[0]).all()) else UNKNOWN


def _probes(dtype: torch.dtype, own: tuple[float, ...]) -> tuple[float, ...]:
    if dtype is torch.bool:
        return (0.0, 1.0)
    if dtype.is_floating_point:
        return tuple(dict.fromkeys((*PROBES, *own)))
    return tuple(dict.fromkeys((-7.0, -1.0, 0.0, 1.0, 2.0, 5.0, 1000.0, *(float(int(value)) for value in own))))


def _widen(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def identity(flow: Flow, call: Call) -> Label:
    """The first operand, moved or copied; a cast to integers keeps zeros and forgets other constants."""
    label = flow.of(call.tensors()[0][1])
    if call.out.dtype is None or call.out.dtype.is_floating_point:
        return label
    return Label(tuple(keep_zero(axis) for axis in label.axes), label.static)


def _prelu(flow: Flow, call: Call) -> Label:
    """``weight`` has one entry or one per channel (axis 1); prelu(0) = 0."""
    x, weight = flow.of(call["self"]), flow.of(call["weight"])
    axes = [keep_zero(axis) for axis in x.axes]
    at = min(1, len(axes) - 1)
    if axis_size(weight.axes[0]) > 1:
        tied = flow.tie([axes[at], weight.axes[0]])
        axes[at] = tuple(t.factor(lambda carries: carries[0]) for t in tied)
    return Label(tuple(axes), x.static and weight.static)


def _triangle(flow: Flow, call: Call) -> Label:
    """Zeros beyond a diagonal of the last two axes, whose positions cannot move against each other."""
    x = flow.of(call["self"])
    for axis in x.axes[-2:]:
        flow.freeze_axis(axis, f"is a side of the triangle that `{call.node.name}` cuts out")
    return Label((*map(keep_zero, x.axes[:-2]), *(free(size) for size in call.out.shape[-2:])), x.static)


def _keeps_all(call: Call) -> bool:
    return not call["train"] or call["p"] == 0


def _dropout(flow: Flow, call: Call) -> Label:
    """The operand itself, unless it is dropped out at random: each draw depends on how many positions there are."""
    label = flow.of(call["input"])
    if _keeps_all(call):
        return label
    flow.freeze_label(label, RANDOM.format(node=call.node.name), AT_REST)
    return Label(tuple(forget(axis) for axis in label.axes))


RANDOM = "is multiplied by random numbers in `{node}`, which depend on how many there are"
AT_REST = "let dropout follow the module: F.dropout(x, p, self.training), or nn.Dropout"


row("aten.dropout", "aten.alpha_dropout", "aten.feature_dropout", labels=_dropout, transport=True, identity=_keeps_all)
row(
    "aten.clone", "aten.contiguous", "aten.detach",
    "aten.to", "aten._to_copy", "aten.alias", "aten.lift_fresh_copy", "aten.type_as", "aten.float", "aten.double",
    "aten.half", "aten.positive", "aten.lift",
    labels=identity, transport=True,
)  # fmt: skip
row("aten.prelu", labels=_prelu)
row("aten.tril", "aten.triu", labels=_triangle)
row(
    "aten.hardswish", "aten.relu6", "aten.hardtanh", "aten.hardsigmoid", "aten.mish", "aten.selu", "aten.celu",
    "aten.elu", "aten.softplus", "aten.softshrink", "aten.hardshrink", "aten.threshold", "aten.log_sigmoid",
    "aten.softsign", "aten.tanhshrink", "aten.leaky_relu", "aten.gelu", "aten.silu", "aten.relu", "aten.sigmoid",
    "aten.tanh", "aten.square", "aten.absolute", "aten.subtract", "aten.multiply", "aten.divide", "aten.true_divide",
    "aten.rsub", "aten.clip", "aten.float_power", "aten.where.Scalar", "aten.where.ScalarSelf",
    "aten.where.ScalarOther", "aten.masked_fill.Tensor",
    labels=labels, join=SUM,
)  # fmt: skip
