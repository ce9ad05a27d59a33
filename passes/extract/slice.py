"""Cut a graph to a config: slice its tensors and rewrite the shape arguments of its calls (DESIGN 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import fx, nn

from coppice.core.calls import Call
from coppice.core.config import Config
from coppice.core.extraction import Extraction, Literal
from coppice.core.graph import Value
from coppice.core.labels import Axis, Label, labelled
from coppice.core.ops import lookup
from coppice.core.solve import Bools
from coppice.core.space import Space
from coppice.passes.extract.tidy import TIDY


class SpaceCut:
    """A config seen by the rewrites of the op table (`coppice.core.ops.Cut`)."""

    def __init__(self, space: Space, config: Config) -> None:
        self._space, self._gone = space, space.removed(config)
        self._keep: dict[int, tuple[Axis, Bools]] = {}

    def of(self, node: fx.Node) -> Label:
        label = self._space.labels[node]
        assert isinstance(label, Label)
        return label

    def out(self, call: Call) -> Label:
        return self.of(call.node)

    def keep(self, axis: Axis) -> Bools:
        known = self._keep.get(id(axis))
        if known is None:
            known = self._keep[id(axis)] = (axis, self._space.axis_keep(axis, self._gone))
        return known[1]

    def count(self, axis: Axis) -> int:
        return int(self.keep(axis).sum())


def cut(space: Space, config: Config) -> Extraction:
    """The subgraph of ``space.graph`` that ``config`` denotes, with tensors of its own.

    Linear in the size of the graph. Raises `UnsupportedError` where a call cannot be written at the new shape.
    """
    graph = space.graph
    view = SpaceCut(space, config)
    kept = {
        name: tuple(None if m is None or m.all() else m for m in masks)
        for name, masks in space.keep_masks(config).items()
    }
    tensors = {name: _sliced(tensor, kept.get(name, ())) for name, tensor in graph.tensors.items()}
    small = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    literals: list[Literal] = []
    for node in graph.fx.nodes:
        new = small.node_copy(node, lambda n: env[n])
        new.meta = {key: node.meta[key] for key in ("value", "source", "modules") if key in node.meta}
        env[node] = new
        if node.op == "call_function":
            literals += _rewrite(node, new, view, env)
        label = space.labels.get(node)
        if label is not None and node.op != "output":
            new.meta["value"] = _value(node.meta["value"], label, view)
    result = replace(
        graph,
        fx=small,
        tensors=tensors,
        aliases=dict(graph.aliases),
        notes=list(graph.notes),
        model=None,
        spaces=WeakValueDictionary(),
        version=0,
    )
    result.verify()
    TIDY.run(result)
    return Extraction(result, kept, tuple(literals))


def _sliced(tensor: torch.Tensor, masks: Sequence[Bools | None]) -> torch.Tensor:
    data = tensor.detach()
    for k, mask in enumerate(masks):
        if mask is not None:
            data = data.index_select(k, torch.from_numpy(np.flatnonzero(mask)).to(data.device))
    data = data.clone(memory_format=torch.contiguous_format)
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _value(value: Any, label: object, view: SpaceCut) -> Any:
    if isinstance(value, tuple) and isinstance(label, tuple):
        return tuple(_value(v, part, view) for v, part in zip(value, label, strict=True))
    if not isinstance(value, Value) or not isinstance(label, Label) or len(label.axes) != len(value.shape):
        return value
    shape = tuple(
        view.count(axis) if labelled(axis) else size for axis, size in zip(label.axes, value.shape, strict=True)
    )
    symbols = tuple(
        f"({symbol})*{new}//{old}" if symbol and new != old else symbol
        for symbol, new, old in zip(value.symbols, shape, value.shape, strict=True)
    )
    return Value(shape, value.dtype, symbols, value.hint)


def _rewrite(node: fx.Node, new: fx.Node, view: SpaceCut, env: dict[fx.Node, fx.Node]) -> list[Literal]:
    op = lookup(node.target)
    if op is None or op.rewrite is None:
        return []
    call = Call(node)
    change = op.rewrite(call, view)
    if not change.arguments:
        return []
    if change.target is not None:
        new.target = change.target
        args: Any = tuple(
            change.arguments[a.name] for a in change.target._schema.arguments if a.name in change.arguments
        )
        kwargs: Any = {}
    else:
        args, kwargs = call.with_arguments(change.arguments)
    new.args, new.kwargs = (fx.map_arg(part, lambda n: env[n]) for part in (args, kwargs))
    modules = tuple(node.meta.get("modules", ()))
    return [
        Literal(modules, name, old, now)
        for name, value in change.arguments.items()
        for old, now in _pairs(call.get(name), value)
        if old != now
    ]


def _pairs(old: Any, new: Any) -> list[tuple[int, int]]:
    if isinstance(old, int) and isinstance(new, int):
        return [(old, new)]
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        return [(a, b) for a, b in zip(old, new, strict=True) if isinstance(a, int) and isinstance(b, int)]
    return []
