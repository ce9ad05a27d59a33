"""Cut a graph to a config: slice its tensors and rewrite the shape arguments of its calls (DESIGN 7)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from coppice.core.calls import Call
from coppice.core.config import Config
from coppice.core.extraction import Extraction, Recount, Sizes, low_name, sliced
from coppice.core.graph import Value
from coppice.core.labels import Axis, Label, axis_size, labelled
from coppice.core.ops import Average, lookup
from coppice.core.ops.insert import insert
from coppice.core.solve import Bools
from coppice.core.space import Space
from coppice.core.text import size_text
from coppice.passes.extract.tidy import TIDY


class SpaceCut:
    """A config seen by the rewrites of the op table (`coppice.core.ops.Cut`)."""

    def __init__(self, space: Space, config: Config) -> None:
        self._space, self._gone = space, space.removed(config)
        self._live = space.live(config.skip)
        self._erased = {(s.operand, s.join) for s in map(space.segments.named, config.skip)}
        self._keep: dict[int, tuple[Axis, Bools]] = {}

    def of(self, node: fx.Node) -> Label:
        label = self._space.labels[node]
        assert isinstance(label, Label)
        return label

    def out(self, call: Call) -> Label:
        return self.of(call.node)

    def needs(self, node: fx.Node) -> bool:
        """Whether ``node`` is still needed once segments are erased."""
        return bool(self._live[self._space.segments.liveness.nodes[node]])

    def erases(self, operand: fx.Node, join: fx.Node) -> bool:
        return (operand, join) in self._erased

    def keep(self, axis: Axis) -> Bools:
        known = self._keep.get(id(axis))
        if known is None:
            known = self._keep[id(axis)] = (axis, self._space.axis_keep(axis, self._gone))
        return known[1]

    def averaged(self, node: fx.Node) -> tuple[Average, list[int], list[int]] | None:
        """How a call averages, over how many positions of each axis that stay, and that were; None where none left."""
        op = lookup(node.target)
        if op is None or op.average is None:
            return None
        axes = op.average.axes(Call(node), self.of)
        present, full = [self.count(axis) for axis in axes], [axis_size(axis) for axis in axes]
        return None if present == full else (op.average, present, full)

    def constants(self, axis: Axis) -> npt.NDArray[np.float64]:
        """What the removed positions of ``axis`` hold, and zero where a position stays."""
        sizes = [factor.size for factor in axis]
        result = np.zeros(sizes)
        for k, factor in enumerate(axis):
            if factor.ids is not None and factor.carry is not None:
                gone = ~self.keep((factor,))
                along = np.where(gone, factor.carry, 0.0).reshape([-1 if j == k else 1 for j in range(len(sizes))])
                result = np.where(np.broadcast_to(along, sizes) != 0, along, result)
        return result.reshape(-1)

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
    folded = _folded(space, config, view)
    tensors = {name: _part(tensor, folded.get(name), kept.get(name, ())) for name, tensor in graph.tensors.items()}
    lows = {low_name(name): _low(graph.tensors[name], part, kept.get(name, ())) for name, part in folded.items()}
    tensors |= {name: low for name, low in lows.items() if low is not None}
    small = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    sizes: list[Sizes] = []
    recounts: list[Recount] = []
    left: dict[fx.Node, fx.Node] = {}
    for node in graph.fx.nodes:
        if node.op != "placeholder" and not view.needs(node):
            continue
        parts = [n for n in node.all_input_nodes if not view.erases(n, node)]
        if len(parts) < len(node.all_input_nodes) and len(parts) == 1:
            env[node], left[node] = env[parts[0]], parts[0]
            continue
        new = _copied(node, parts, small, env)
        env[node] = new
        if node.op == "call_function":
            sizes += _rewrite(node, new, view, env)
        label = space.labels.get(node)
        if label is not None and node.op != "output":
            new.meta["value"] = _value(node.meta["value"], label, view)
        if node in space.folds:
            _add_low(new, tensors)
        if node.op == "call_function":
            env[node], recount = _recounted(node, new, view, space.residual)
            recounts += recount
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
    joined = tuple(space.segments.named(name).modules for name in config.skip)
    dead = space.dead_tensors(config.skip)
    erased = sorted({*dead, *(alias for alias, name in graph.aliases.items() if name in dead)})
    return Extraction(result, kept, tuple(sizes), tuple(recounts), folded, env, left, joined, tuple(erased))


def _copied(node: fx.Node, parts: list[fx.Node], small: fx.Graph, env: dict[fx.Node, fx.Node]) -> fx.Node:
    """A copy of ``node`` in the small graph, over the operands ``parts`` alone where it concatenates more."""
    args: Any = node.args
    kwargs: Any = node.kwargs
    if len(parts) < len(node.all_input_nodes):
        op = lookup(node.target)
        assert op is not None and op.join is not None and op.join.parts is not None
        call = Call(node)
        args, kwargs = call.with_arguments({op.join.parts: [n for n in call[op.join.parts] if n in parts]})
    args, kwargs = (fx.map_arg(part, lambda n: env[n]) for part in (args, kwargs))
    new = small.create_node(node.op, node.target, args, kwargs, node.name, node.type)
    new.meta = {key: node.meta[key] for key in ("value", "source", "modules") if key in node.meta}
    return new


def _folded(space: Space, config: Config, view: SpaceCut) -> dict[str, torch.Tensor]:
    """Per bias, what the constants of removed units add to it, in fp64: W c, summed over a convolution's window."""
    masked = space.masked_tensors(config) if space.folds else {}
    result: dict[str, torch.Tensor] = {}
    for node, axis in space.folds.items():
        constants = view.constants(axis) if view.needs(node) else np.zeros(0)
        if constants.any():
            weight = masked[str(Call(node)["weight"].target)].detach().double()
            matrix = weight.flatten(2).sum(-1) if weight.ndim > 2 else weight
            result[str(Call(node)["bias"].target)] = matrix @ torch.from_numpy(constants).to(weight.device)
    return result


def _part(tensor: torch.Tensor, offset: torch.Tensor | None, masks: tuple[Bools | None, ...]) -> torch.Tensor:
    data = tensor.detach()
    if offset is not None:
        data = (data.double() + offset).to(data.dtype)
    data = sliced(data, masks)
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
        size_text(f"({symbol})*{new}//{old}") if symbol and new != old else symbol
        for symbol, new, old in zip(value.symbols, shape, value.shape, strict=True)
    )
    return Value(shape, value.dtype, symbols, value.hint)


def _rewrite(node: fx.Node, new: fx.Node, view: SpaceCut, env: dict[fx.Node, fx.Node]) -> list[Sizes]:
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
        Sizes(modules, name, *_before_and_after(call, name, value), call.get(name) != value)
        for name, value in change.arguments.items()
    ]


def _before_and_after(call: Call, name: str, value: Any) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    old, new = _numbers(call.get(name)), _numbers(value)
    size = call.get("split_size")
    if name not in call.names and isinstance(size, int) and len(set(new)) == 1:  # one size for all became a list
        return (size,), new[:1]
    return old, new


def _recounted(node: fx.Node, new: fx.Node, view: SpaceCut, residual: str) -> tuple[fx.Node, list[Recount]]:
    """The node that stands for ``node`` once averages over units keep their count, if they are to."""
    found = view.averaged(node)
    if found is None:
        return new, []
    average, present, full = found
    if residual == "renormalise":
        if average.sizes is not None:
            new.args, new.kwargs = Call(new).with_arguments({average.sizes: present})
        return new, []
    modules = tuple(node.meta.get("modules", ()))
    return average.keep_count(new.graph, new, present, full), [Recount(modules, math.prod(present), math.prod(full))]


def _low(bias: torch.Tensor, offset: torch.Tensor, masks: tuple[Bools | None, ...]) -> torch.Tensor | None:
    """What ``bias + offset`` loses when it is rounded to the precision of ``bias``; None where that is nothing."""
    total = bias.detach().double() + offset
    low = sliced((total - total.to(bias.dtype).double()).to(bias.dtype), masks)
    return None if low.is_meta or not low.any() else low


def _add_low(new: fx.Node, tensors: dict[str, torch.Tensor]) -> None:
    """Let ``new`` add its bias and the rest that was rounded off it."""
    call = Call(new)
    bias = call["bias"]
    name = low_name(str(bias.target))
    if name in tensors:
        with new.graph.inserting_before(new):
            low = new.graph.create_node("get_attr", name)
            low.meta = dict(bias.meta)
            total = insert(new.graph, torch.ops.aten.add.Tensor, (bias, low), tensors[name].shape, bias)
        new.args, new.kwargs = call.with_arguments({"bias": total})


def _numbers(argument: Any) -> tuple[int | None, ...]:
    entries = argument if isinstance(argument, (list, tuple)) else [argument]
    return tuple(entry if isinstance(entry, int) else None for entry in entries)
