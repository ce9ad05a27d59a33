"""Recurrent layers and cells. A hidden unit owns its row in every gate and is read back by one column.

With those rows, the biases and the initial state of a unit at zero its state stays exactly zero: tanh(0) = 0 and
relu(0) = 0 in a plain RNN; n = tanh(0) = 0 and h' = (1 - z) n + z h = 0 in a GRU; c' = f c + i tanh(0) = 0 and
h' = o tanh(c') = 0 in an LSTM, whatever the gates are. torch gives all layers and directions of one call the same
hidden size, so unit h of one leaves with unit h of all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from coppice.core.calls import Call, op_name
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
)
from coppice.core.ops import Macs, row
from coppice.core.ops.contract import contract
from coppice.core.ops.parts import take

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
STATE = "is part of a state of `{node}` that no parameter makes"
LAYER = "is a layer or direction of `{node}`"
STEP = "is a step in time of `{node}`"
PROJECTED = "feeds the projection of `{node}`, which torch knows by its being narrower than the cell"
DROPS = "goes through `{node}`, which drops units at random"


@dataclass(frozen=True, eq=False)
class _Weights:
    """The tensors of one layer in one direction: [gates x H, in], [gates x H, out], biases [gates x H], [out, H]."""

    read: Label
    again: Label
    biases: tuple[Label, ...]
    project: Label | None = None

    @property
    def rows(self) -> list[Axis]:
        return [label.axes[0] for label in (self.read, self.again, *self.biases)]

    @property
    def all(self) -> tuple[Label, ...]:
        return (self.read, self.again, *self.biases, *([self.project] if self.project else []))


def _silent(carries: Sequence[Carry]) -> Carry:
    """Zero where all rows of a unit and its first state are zero."""
    zero = np.where(np.all([c == 0 for c in carries], axis=0), 0.0, UNKNOWN)
    return np.where(np.any([np.isinf(c) for c in carries], axis=0), POISON, zero)


def _tied(flow: Flow, call: Call, axes: Sequence[Axis]) -> Axis:
    why = STATE.format(node=call.node.name)
    return tuple(tied.factor(_silent) for tied in flow.tie(axes, why))


def _units(flow: Flow, call: Call, weights: Sequence[_Weights], states: Sequence[Label]) -> tuple[Axis, Axis]:
    """The axes of the output state and of the cell state, which are one unless the layers have projections."""
    gates = GATES[op_name(call.target).removeprefix("aten.").removesuffix("_cell")]
    runs: list[Axis] = []
    for axis in (axis for w in weights for axis in w.rows):
        size = axis_size(axis) // gates
        runs += [take(flow, axis, np.arange(g * size, (g + 1) * size)) for g in range(gates)]
    projections = [w.project for w in weights if w.project is not None]
    if not projections:
        both = _tied(flow, call, [*runs, *(state.axes[-1] for state in states)])
        return both, both
    cell = _tied(flow, call, [*runs, states[1].axes[-1]])
    flow.freeze_axis(cell, PROJECTED.format(node=call.node.name))
    for project in projections:
        contract(flow, call, Label((cell,)), 0, project, 1)
    return _tied(flow, call, [*(p.axes[0] for p in projections), states[0].axes[-1]]), cell


def _read(flow: Flow, call: Call, x: Label, hidden: Axis, weights: _Weights) -> None:
    contract(flow, call, x, -1, weights.read, 1)
    contract(flow, call, Label((hidden,), x.static), 0, weights.again, 1)


# ---- layers ------------------------------------------------------------------------------------------------------


def _weights_of(flow: Flow, call: Call, projected: bool) -> list[_Weights]:
    params = [flow.of(node) for node in call["params"]]
    biases = 2 if call["has_biases"] else 0
    step = 2 + biases + projected
    return [
        _Weights(p[0], p[1], tuple(p[2 : 2 + biases]), p[-1] if projected else None)
        for p in (params[k : k + step] for k in range(0, len(params), step))
    ]


def _layers(flow: Flow, call: Call) -> tuple[Label, ...]:
    x = flow.of(call["input"])
    states = [flow.of(node) for node in ([call["hx"]] if isinstance(call["hx"], fx.Node) else call["hx"])]
    at = 1 if call["batch_first"] else 0  # the axis of steps
    projected = len(states) > 1 and axis_size(states[0].axes[-1]) != axis_size(states[1].axes[-1])
    weights = _weights_of(flow, call, projected)
    for state in states:
        flow.freeze_axis(state.axes[0], LAYER.format(node=call.node.name))
        if axis_size(state.axes[1]) != 1:
            flow.tie([state.axes[1], x.axes[1 - at]])
    flow.freeze_axis(x.axes[at], STEP.format(node=call.node.name))
    hidden, cell = _units(flow, call, weights, states)
    directions = 2 if call["bidirectional"] else 1
    lead = [free(axis_size(axis)) if k == at else forget(axis) for k, axis in enumerate(x.axes[:-1])]
    static = all(label.static for label in (x, *states, *(part for w in weights for part in w.all)))
    both: Axis = (*free(directions), *hidden)
    for layer in range(call["num_layers"]):
        read = x if layer == 0 else Label((*lead, both), static)
        for w in weights[layer * directions : (layer + 1) * directions]:
            _read(flow, call, read, hidden, w)
    if call["train"] and call["dropout"]:
        flow.freeze_axis(hidden, DROPS.format(node=call.node.name))
    count = free(axis_size(states[0].axes[0]))
    ends = [Label((count, lead[1 - at], axis), static) for axis in (hidden, cell)[: len(states)]]
    return Label((*lead, both), static), *ends


def _layers_macs(call: Call, flow: Flow) -> tuple[Macs, ...]:
    """Every weight matrix is applied at every step of every sample."""
    steps = flow.of(call["input"]).axes[:-1]
    labels = (flow.of(node) for node in call["params"])
    return tuple(Macs(1, (*steps, *label.axes)) for label in labels if len(label.axes) == 2)


# ---- cells -------------------------------------------------------------------------------------------------------


def _cell(flow: Flow, call: Call) -> Label | tuple[Label, ...]:
    x = flow.of(call["input"])
    states = [flow.of(node) for node in ([call["hx"]] if isinstance(call["hx"], fx.Node) else call["hx"])]
    biases = tuple(flow.of(call[name]) for name in ("b_ih", "b_hh") if call[name] is not None)
    weights = _Weights(flow.of(call["w_ih"]), flow.of(call["w_hh"]), biases)
    for state in states:
        if axis_size(state.axes[0]) != 1:
            flow.tie([state.axes[0], x.axes[0]])
    hidden, _ = _units(flow, call, [weights], states)
    _read(flow, call, x, hidden, weights)
    static = all(label.static for label in (x, *states, *weights.all))
    out = Label((forget(x.axes[0]), hidden), static)
    return (out, out) if isinstance(call.node.meta["value"], tuple) else out


def _cell_macs(call: Call, flow: Flow) -> tuple[Macs, ...]:
    steps = flow.of(call["input"]).axes[:-1]
    return tuple(Macs(1, (*steps, *flow.of(call[name]).axes)) for name in ("w_ih", "w_hh"))


row(
    *(f"aten.{kind}.input" for kind in GATES),
    labels=_layers, macs=_layers_macs, roles={"params": ("out", "in"), "hx": ("layer", "batch", "out")},
)  # fmt: skip
row(
    *(f"aten.{kind}_cell" for kind in GATES),
    labels=_cell, macs=_cell_macs,
    roles=dict.fromkeys(("w_ih", "w_hh", "b_ih", "b_hh"), ("out", "in")),
)  # fmt: skip
