"""Axes as products of factors, and the relations between their units that a walk over a graph records.

Every position of a labelled factor holds the id of a *unit variable*: true when that position is removed. A walk over
the graph (`Flow`) creates variables and three kinds of facts about them:

- ``union``: two variables are equal (their positions leave together);
- ``freeze``: a variable is false (its position must stay), with the reason;
- ``grid``: a flat run of variables is the outer product of several factors. A position of the grid is removed exactly
  when its row or its column is: ``flat[i, j] = rows[i] or columns[j]``. Reshapes state this, in either direction.

Nothing is decided during the walk; `coppice.core.solve` finds the free variables once all facts are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import fx

Ids = npt.NDArray[np.int64]
Carry = npt.NDArray[np.float64]

FIXED = 0
"""The variable of a position that can never be removed."""

UNKNOWN = math.nan
"""The carry of a position whose slice may hold anything finite once its unit is removed."""

POISON = math.inf
"""The carry of a position whose slice may hold NaN or infinity once its unit is removed."""

RESIDUAL = ("exact", "renormalise", "freeze")
"""Averages over units: over the original count, over the count that stays, or not at all (units under them stay)."""


@dataclass(frozen=True)
class Reason:
    """Why a unit must stay: the fact, the node and source line where it arose, and what would free it."""

    text: str
    node: str = ""
    source: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        return self.text + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of an axis: ``size`` positions, free (``ids`` is None: no unit can be removed) or labelled.

    ``carry[i]`` is the number that the whole slice at position i holds once its unit is removed and the slices of the
    parameters producing it are zero: 0, another constant, `UNKNOWN` or `POISON`.
    """

    size: int
    ids: Ids | None = None
    carry: Carry | None = None
    origin: Reason | None = None
    """Why a free factor cannot be cut, where that is worth telling."""

    @property
    def labelled(self) -> bool:
        return self.ids is not None

    def with_carry(self, carry: Carry) -> Factor:
        return Factor(self.size, self.ids, carry) if self.ids is not None else self


OTHER = "nothing, where the axis counts positions; else make the other operand a parameter, or give it size 1 there"

Axis = tuple[Factor, ...]
"""An axis of size 1 is the empty product."""


@dataclass(frozen=True, eq=False)
class Label:
    """The axes of one value; ``static`` says that it is computed from parameters and constants alone."""

    axes: tuple[Axis, ...]
    static: bool = False

    def axis(self, k: int) -> Axis:
        return self.axes[k]


@dataclass(frozen=True, eq=False)
class Grid:
    """``flat`` (row-major over the parts' sizes) is removed where any of its coordinates' ``parts`` is."""

    flat: Ids
    parts: tuple[Ids, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(part) for part in self.parts)


@dataclass(frozen=True, eq=False)
class Tied:
    """One common factor of several axes: shared variables and what each axis carries, or None where one is free."""

    size: int
    ids: Ids | None
    carries: tuple[Carry, ...]
    origin: Reason | None = None

    def factor(self, combine: Callable[[tuple[Carry, ...]], Carry]) -> Factor:
        """The factor with carries combined (not called where the factor is free)."""
        return Factor(self.size, self.ids, None if self.ids is None else combine(self.carries), self.origin)


def free(size: int, origin: Reason | None = None) -> Axis:
    return (Factor(size, origin=origin),) if size != 1 else ()


def axis_size(axis: Axis) -> int:
    return math.prod(factor.size for factor in axis)


def labelled(axis: Axis) -> bool:
    return any(factor.labelled for factor in axis)


def ids_of(axis: Axis) -> list[Ids]:
    return [factor.ids for factor in axis if factor.ids is not None]


def same(values: Sequence[float]) -> float:
    """The value that all of ``values`` share, `POISON` if any is, else `UNKNOWN`."""
    if any(math.isinf(value) for value in values):
        return POISON
    return values[0] if all(value == values[0] for value in values) else UNKNOWN


def agree(carries: Sequence[Carry] | Carry) -> Carry:
    """`same` down the columns of a stack of carries."""
    stacked = np.asarray(carries)
    result = np.where((stacked == stacked[0]).all(axis=0), stacked[0], UNKNOWN)
    return np.where(np.isinf(stacked).any(axis=0), POISON, result)


def keep_zero(axis: Axis) -> Axis:
    """Where an operation maps a zero slice to zero and nothing else is known of it."""
    return tuple(
        f
        if f.carry is None
        else f.with_carry(np.where(np.isinf(f.carry), POISON, np.where(f.carry == 0, 0.0, UNKNOWN)))
        for f in axis
    )


def forget(axis: Axis) -> Axis:
    """Where an operation makes a zero slice something finite that is not known; what may be NaN stays so."""
    return tuple(f if f.carry is None else f.with_carry(np.where(np.isinf(f.carry), POISON, UNKNOWN)) for f in axis)


def boundaries(sizes: Sequence[int]) -> set[int]:
    """The inner products at which a row-major product of ``sizes`` can be cut."""
    cuts, inner = {1}, 1
    for size in reversed(sizes):
        inner *= size
        cuts.add(inner)
    return cuts


def refinement(*shapes: Sequence[int]) -> list[int] | None:
    """The coarsest shape that refines all ``shapes`` (equal products), or None where they cut across each other.

    None too for empty axes, which have no factors.
    """
    if any(0 in shape for shape in shapes):
        return None
    cuts = sorted(set().union(*(boundaries(shape) for shape in shapes)), reverse=True)
    pairs = list(zip(cuts, cuts[1:], strict=False))
    if any(outer % inner for outer, inner in pairs):
        return None
    return [outer // inner for outer, inner in pairs]


@dataclass
class Flow:
    """Collects the facts of one walk. All methods are linear in the number of positions they touch."""

    count: int = 1
    edges: list[tuple[Ids, Ids]] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    freezes: list[tuple[Ids, Reason]] = field(default_factory=list)
    produced: list[Ids] = field(default_factory=list)
    statistics: list[Ids] = field(default_factory=list)
    folds: dict[fx.Node, Axis] = field(default_factory=dict)
    """Contractions whose removed positions hold constants, which their bias takes over: the axis summed over."""
    residual: str = "exact"
    """What is done where a norm averages over units (`RESIDUAL`)."""
    consumed: list[Ids] = field(default_factory=list)
    labels: dict[fx.Node, Label | tuple[Label, ...]] = field(default_factory=dict)
    here: Reason = field(default_factory=lambda: Reason(""))
    _flat_of: dict[tuple[int, ...], Ids] = field(default_factory=dict)
    _parts_of: dict[tuple[int, tuple[int, ...]], tuple[Ids, ...]] = field(default_factory=dict)

    def of(self, node: fx.Node) -> Label:
        """The label of a node that computes one tensor."""
        label = self.labels[node]
        assert isinstance(label, Label)
        return label

    # ---- facts ---------------------------------------------------------------------------------------------------

    def fresh(self, size: int, carry: float = UNKNOWN) -> Factor:
        """A factor of ``size`` new variables whose slices hold ``carry`` once removed."""
        ids = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return Factor(size, ids, np.full(size, carry))

    def fresh_axis(self, size: int, carry: float = UNKNOWN) -> Axis:
        return (self.fresh(size, carry),) if size != 1 else ()

    def freeze(self, ids: Ids, text: str, remedy: str = "") -> None:
        ids = ids[ids != FIXED]
        if len(ids):
            self.freezes.append((ids, Reason(text, self.here.node, self.here.source, remedy)))

    def freeze_axis(self, axis: Axis, text: str, remedy: str = "") -> None:
        for ids in ids_of(axis):
            self.freeze(ids, text, remedy)

    def freeze_label(self, label: Label, text: str, remedy: str = "") -> None:
        for axis in label.axes:
            self.freeze_axis(axis, text, remedy)

    def union(self, a: Ids, b: Ids) -> None:
        if a is b:
            return
        movable = (a != FIXED) & (b != FIXED)
        if not movable.all():
            self.freeze(np.where(movable, FIXED, np.maximum(a, b)), "meets a position that no parameter makes")
            a, b = a[movable], b[movable]
        self.edges.append((a, b))

    # ---- shapes of factors ---------------------------------------------------------------------------------------

    def split(self, factor: Factor, sizes: Sequence[int]) -> list[Factor]:
        """Cut one factor into a row-major product of ``sizes``."""
        if len(sizes) == 1:
            return [factor]
        ids, carry = factor.ids, factor.carry
        if ids is None or carry is None:
            return [Factor(size, origin=factor.origin) for size in sizes]
        grid, values = ids.reshape(sizes), carry.reshape(sizes)
        for k, size in enumerate(sizes):  # repeated or tiled labels need no new variables
            along = np.moveaxis(grid, k, 0).reshape(size, -1)
            if (along == along[:, :1]).all():
                own = np.moveaxis(values, k, 0).reshape(size, -1)
                merged = Factor(size, along[:, 0].copy(), np.array([same(row.tolist()) for row in own]))
                return [merged if j == k else Factor(other) for j, other in enumerate(sizes)]
        parts = self._split_ids(ids, tuple(sizes))
        return [
            Factor(size, part, agree(np.moveaxis(values, k, 0).reshape(size, -1).T))
            for k, (size, part) in enumerate(zip(sizes, parts, strict=True))
        ]

    def merge(self, axis: Axis) -> Factor:
        """The axis as one factor; a product of two or more labelled factors becomes a grid."""
        if len(axis) == 1:
            return axis[0]
        sizes = [factor.size for factor in axis]
        named = [k for k, factor in enumerate(axis) if factor.labelled]
        if not named:
            return Factor(math.prod(sizes), origin=next((f.origin for f in axis if f.origin), None))
        parts = [(axis[k].ids, axis[k].carry, k) for k in named]
        shape = [axis[k].size for k in named]
        if len(named) == 1:
            ids, carry = parts[0][0], parts[0][1]
        else:
            ids = self._merge_ids(tuple(part for part, _, _ in parts if part is not None))
            grids = np.meshgrid(*[c for _, c, _ in parts if c is not None], indexing="ij")
            carry = agree([g.reshape(-1) for g in grids])
        assert ids is not None and carry is not None
        view = [size if k in named else 1 for k, size in enumerate(sizes)]
        assert math.prod(shape) == len(ids)
        spread_ids = np.broadcast_to(ids.reshape(view), sizes).reshape(-1).copy()
        spread_carry = np.broadcast_to(carry.reshape(view), sizes).reshape(-1).copy()
        return Factor(math.prod(sizes), spread_ids, spread_carry)

    def consume(self, axis: Axis) -> None:
        """Note that a weight's ``axis`` only meets slices that are zero already: its own slices need no mask."""
        self.consumed += ids_of(axis)

    def refine(self, axis: Axis, sizes: Sequence[int]) -> list[Factor]:
        """Cut the factors of ``axis`` so that their sizes are exactly ``sizes``, a refinement of what they are."""
        result: list[Factor] = []
        rest = list(sizes)
        for factor in axis:
            take: list[int] = []
            while math.prod(take) != factor.size:
                take.append(rest.pop(0))
            result += self.split(factor, take)
        return result

    def align(self, axes: Sequence[Axis]) -> list[list[Factor]]:
        """The same factorisation for several axes of equal size: one list of factors per axis."""
        sizes = refinement(*([factor.size for factor in axis] for axis in axes))
        if sizes is None:
            return [[self.merge(axis)] for axis in axes]
        return [self.refine(axis, sizes) for axis in axes]

    def tie(self, axes: Sequence[Axis], why: str = "") -> list[Tied]:
        """State that positions of ``axes`` leave together; one `Tied` per common factor.

        Where one of them is free the others are frozen: what no parameter makes cannot be cut to fit.
        """
        result: list[Tied] = []
        for factors in zip(*self.align(axes), strict=True):
            named = [f.ids for f in factors if f.ids is not None]
            if len(named) < len(factors):
                origin = next((f.origin for f in factors if f.origin), None)
                for ids in named:
                    if origin is not None:
                        self.freezes.append((ids[ids != FIXED], origin))
                    else:
                        self.freeze(ids, why or "is combined with an axis that no parameter makes", OTHER)
                result.append(Tied(factors[0].size, None, (), origin))
                continue
            for ids in named[1:]:
                self.union(named[0], ids)
            result.append(Tied(factors[0].size, named[0], tuple(f.carry for f in factors if f.carry is not None)))
        return result

    def held(self, axis: Axis, size: int, why: str) -> Axis:
        """Freeze ``axis``, and return a free one of ``size`` that remembers why."""
        self.freeze_axis(axis, why)
        return free(size, Reason(why, self.here.node, self.here.source))

    def _split_ids(self, ids: Ids, sizes: tuple[int, ...]) -> tuple[Ids, ...]:
        known = self._parts_of.get((id(ids), sizes))
        if known is None:
            known = tuple(self.fresh(size).ids for size in sizes)  # type: ignore[misc]
            self._record(ids, known)
        return known

    def _merge_ids(self, parts: tuple[Ids, ...]) -> Ids:
        flat = self._flat_of.get(tuple(id(part) for part in parts))
        if flat is None:
            fresh = self.fresh(math.prod(len(part) for part in parts)).ids
            assert fresh is not None
            flat = fresh
            self._record(flat, parts)
        return flat

    def _record(self, flat: Ids, parts: tuple[Ids, ...]) -> None:
        self.grids.append(Grid(flat, parts))  # holds the arrays, so their id() stays theirs
        self._flat_of[tuple(id(part) for part in parts)] = flat
        self._parts_of[(id(flat), tuple(len(part) for part in parts))] = parts
