"""The op table: everything coppice knows about an operator stands in one row, and passes ask the row.

A row says how labels pass through the op and what it does to zeros (`Op.labels`), its multiply-accumulates
(`Op.macs`) and how its shape arguments change when units leave (`Op.rewrite`).
Rows live beside others of their kind in this folder.
An op without a row is tried on sample inputs (`coppice.core.ops.probe`); what stays unclear freezes what reaches it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from coppice.core.calls import Call, op_name
from coppice.core.higher import HigherOrder
from coppice.core.labels import Axis, Flow, Label
from coppice.core.ops.columns import Columns


class Cut(Protocol):
    """What a rewrite may ask about a config: which positions of an axis stay."""

    def of(self, node: fx.Node) -> Label: ...
    def keep(self, axis: Axis) -> npt.NDArray[np.bool_]: ...
    def count(self, axis: Axis) -> int: ...
    def out(self, call: Call) -> Label: ...


@dataclass(frozen=True)
class Macs:
    """``coefficient`` times the product of the sizes of ``axes`` multiply-accumulates."""

    coefficient: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Rewrite:
    """New arguments by schema name, and a new target where the op itself must change."""

    arguments: dict[str, Any]
    target: Any = None


Recount = Callable[[fx.Graph, fx.Node, Sequence[int], Sequence[int]], fx.Node]


@dataclass(frozen=True)
class Average:
    """An op that averages over units whose slices are zero once they are removed.

    ``axes`` are those averaged over; ``sizes`` names the argument that holds their sizes, where there is one. Two
    functions change a copied node, of which ``present`` positions along each axis stay and ``full`` were; they insert
    calls and return the node that now stands for it. ``keep_count`` lets one that sees what stays average over as many
    as before; ``drop_zeros`` lets one that sees all, the removed ones zero, average over as many as stay.
    """

    axes: Callable[[Call, Callable[[fx.Node], Label]], tuple[Axis, ...]]
    keep_count: Recount
    drop_zeros: Recount
    sizes: str | None = None


@dataclass(frozen=True)
class Join:
    """An op that goes on without some operands: ``operands`` are those it can lose.

    A sum (``parts`` is None) gives the other operand as it is once one is zero. Of a concatenation, ``parts`` names the
    argument that lists the operands, and ``axis`` is the one they follow each other on.
    """

    operands: Callable[[Call], tuple[fx.Node, ...]]
    parts: str | None = None
    axis: Callable[[Call], int] = lambda call: 0


@dataclass(frozen=True)
class Op:
    """One row.

    ``transport`` rows only move elements: a static value stays the parameter it came from. ``roles`` names the axes of
    tensor arguments, and of all tensors in a list. ``identity`` says of a call whether it returns its first argument
    as it is. ``average`` is given for ops that average over units, ``join`` for those that can do without an operand,
    ``columns`` for those that are linear in their weight.
    """

    name: str
    labels: Callable[[Flow, Call], Label | tuple[Label, ...]]
    macs: Callable[[Call, Flow], Macs | tuple[Macs, ...]] | None = None
    rewrite: Callable[[Call, Cut], Rewrite] | None = None
    transport: bool = False
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    identity: Callable[[Call], bool] | None = None
    average: Average | None = None
    join: Join | None = None
    columns: Columns | None = None
    remedy: str = ""
    """What would free the units that this op freezes, where one answer fits all of its reasons."""

    def role(self, user: fx.Node, tensor: fx.Node, axis: int) -> str:
        """The name this op gives to an axis of one of its arguments (the last name covers all further axes)."""
        for argument, value in Call(user).arguments.items():
            held = value if isinstance(value, (list, tuple)) else (value,)
            if argument in self.roles and any(entry is tensor for entry in held):
                names = self.roles[argument]
                return names[min(axis, len(names) - 1)]
        return str(axis)


OPS: dict[str, Op] = {}


def row(
    *names: str,
    labels: Callable[[Flow, Call], Label | tuple[Label, ...]],
    macs: Callable[[Call, Flow], Macs | tuple[Macs, ...]] | None = None,
    rewrite: Callable[[Call, Cut], Rewrite] | None = None,
    transport: bool = False,
    roles: Mapping[str, tuple[str, ...]] | None = None,
    identity: Callable[[Call], bool] | None = None,
    average: Average | None = None,
    join: Join | None = None,
    columns: Columns | None = None,
    remedy: str = "",
) -> None:
    """Add one row under each of ``names`` (``aten.conv2d``: all overloads; ``aten.add.Tensor``: that one)."""
    for name in names:
        if name in OPS:
            raise ValueError(f"the op table has two rows for {name}")
        OPS[name] = Op(name, labels, macs, rewrite, transport, roles or {}, identity, average, join, columns, remedy)


@cache
def _load() -> None:
    for module in (
        "pointwise",
        "views",
        "parts",
        "joins",
        "contract",
        "recurrent",
        "attention",
        "norm",
        "reduce",
        "spatial",
        "indexing",
        "order",
        "scatter",
        "products",
        "sources",
        "higher",
    ):
        importlib.import_module(f"coppice.core.ops.{module}")


@cache
def lookup(target: Any) -> Op | None:
    """The row of an FX call target, or None where the table has none."""
    _load()
    from coppice.core.ops import higher, pointwise

    name = op_name(target)
    if isinstance(target, HigherOrder):
        return OPS.get(name) or higher.other(target)
    if isinstance(target, torch._ops.OpOverload):
        exact = OPS.get(f"{name}.{target._overloadname}")
        if exact is not None or name in OPS:
            return exact or OPS[name]
        if torch.Tag.pointwise in target.tags and torch.Tag.nondeterministic_seeded not in target.tags:
            return Op(name, pointwise.labels, join=pointwise.SUM)
        return None
    return OPS.get(name)
