"""Calls that a rewrite inserts into a cut graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from coppice.core.graph import value_of

aten = torch.ops.aten


def insert(graph: fx.Graph, target: Any, args: tuple[Any, ...], shape: Sequence[int], like: fx.Node) -> fx.Node:
    """Insert a call at the graph's insertion point: its value is ``like``'s with ``shape``, its place is ``like``'s."""
    node = graph.call_function(target, args)
    node.meta = {key: like.meta[key] for key in ("source", "modules") if key in like.meta}
    value = value_of(like)
    symbols = value.symbols if len(shape) == len(value.shape) else ()
    node.meta["value"] = replace(value, shape=tuple(shape), symbols=symbols)
    return node


def pad_end(graph: fx.Graph, x: fx.Node, axes: Sequence[int], sizes: Sequence[int], like: fx.Node) -> fx.Node:
    """``x`` with zeros appended along ``axes`` until they have ``sizes``."""
    shape = list(value_of(x).shape)
    amounts = [0] * len(shape)
    for axis, size in zip(axes, sizes, strict=True):
        amounts[axis], shape[axis] = size - shape[axis], size
    first = min(axis % len(shape) for axis in axes)
    pads = [n for amount in reversed(amounts[first:]) for n in (0, amount)]
    return insert(graph, aten.pad.default, (x, pads, "constant", 0.0), shape, like)


def keep_first(graph: fx.Graph, x: fx.Node, axes: Sequence[int], sizes: Sequence[int], like: fx.Node) -> fx.Node:
    """The first ``sizes`` positions of ``x`` along ``axes``."""
    for axis, size in zip(axes, sizes, strict=True):
        shape = list(value_of(x).shape)
        shape[axis] = size
        x = insert(graph, aten.slice.Tensor, (x, axis % len(shape), 0, size), shape, like)
    return x
