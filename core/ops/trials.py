"""Experiments with one op on inputs drawn for it: what moves together, what a cut leaves, what a removed slice holds.

All of them run the op itself, in fp64 and in the traced precision, on values of many sizes. What they cannot settle
raises `Undecided` with what was seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from coppice.core.graph import FLOATING
from coppice.core.labels import POISON, UNKNOWN

Shape = tuple[int, ...]
Place = tuple[int, int]
"""Which tensor (argument or result), and which of its axes."""

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Run = tuple[Tensor, ...]

MOST_NUMBERS = 1 << 20
MOST_SECONDS = 20.0
SMALL = 1 << 13
"""Calls with more numbers are first tried with shorter axes."""


class Undecided(Exception):
    """What the experiments found instead of an answer, to follow "which"."""


class Unfit(Undecided):
    """The op does more, or less, than compute tensors from tensors, so nothing else that was seen of it counts."""


class Refused(Unfit):
    """The op raised."""


@dataclass(frozen=True)
class Slot:
    """The place of one tensor argument in a call."""

    index: int


@dataclass(frozen=True)
class Case:
    """A call up to its values: the op, its literals, and shape and dtype of every tensor it takes and returns."""

    target: Any
    text: str
    names: tuple[str, ...]
    tensors: tuple[tuple[Shape, torch.dtype], ...]
    results: tuple[Shape, ...]
    examine: frozenset[Place]
    """The axes of arguments that may lose positions, or be tied to one that does."""
    leaves: tuple[Any, ...] = field(compare=False)
    spec: pytree.TreeSpec = field(compare=False)

    @property
    def numbers(self) -> int:
        return sum(math.prod(shape) for shape in (*(s for s, _ in self.tensors), *self.results))


# ---- inputs ------------------------------------------------------------------------------------------------------


def _normal(scale: float) -> Callable[[Shape, torch.Generator], Tensor]:
    return lambda shape, rng: torch.randn(shape, generator=rng, dtype=torch.float64) * scale


def _sparse(shape: Shape, rng: torch.Generator) -> Tensor:
    return _normal(1.0)(shape, rng) * (torch.rand(shape, generator=rng) > 0.5)


def _whole(shape: Shape, rng: torch.Generator) -> Tensor:
    return torch.randint(-3, 4, shape, generator=rng).double()


def _spiked(shape: Shape, rng: torch.Generator) -> Tensor:
    values = _normal(1.0)(shape, rng)
    values.view(-1)[int(torch.randint(0, max(values.numel(), 1), (), generator=rng))] = 1e6
    return values


KINDS: tuple[Callable[[Shape, torch.Generator], Tensor], ...] = (
    _normal(1.0), _normal(1e-3), _normal(30.0), _normal(1e3), lambda s, g: _normal(2.0)(s, g).abs(),
    lambda s, g: -_normal(2.0)(s, g).abs(), lambda s, g: _normal(1e3)(s, g).abs(),
    lambda s, g: -_normal(1e3)(s, g).abs(), _sparse, _whole, _spiked,
    lambda s, g: torch.zeros(s, dtype=torch.float64), lambda s, g: torch.ones(s, dtype=torch.float64),
)  # fmt: skip
RANDOM = len(KINDS) - 2
"""Kinds before this one differ from draw to draw."""
FEW = (0, 3, 8)
"""The kinds that a second look is content with."""


def _integers(shape: Shape, dtype: torch.dtype, rng: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=rng).to(dtype)


# ---- runs --------------------------------------------------------------------------------------------------------


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers bit for bit (up to the sign of zero), NaN being NaN."""
    return a.shape == b.shape and not bool(differs(a, b).any())


def differs(a: Tensor, b: Tensor) -> Tensor:
    return (a != b) & ~((a != a) & (b != b))


@dataclass
class Bench:
    """One op on the bench, at one precision (None: that of the trace, else floats are widened to it).

    ``quick`` is for a second look at what was seen elsewhere: fewer kinds of values, fewer lengths.
    """

    case: Case
    wide: torch.dtype | None
    quick: bool = False
    rng: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(20))
    end: float = field(default_factory=lambda: time.monotonic() + MOST_SECONDS)

    @property
    def kinds(self) -> tuple[int, ...]:
        return FEW if self.quick else tuple(range(len(KINDS)))

    def dtype(self, index: int) -> torch.dtype:
        own = self.case.tensors[index][1]
        return self.wide if self.wide is not None and own in FLOATING else own

    def draw(self, index: int, kind: int, shape: Shape | None = None) -> Tensor:
        shape = self.case.tensors[index][0] if shape is None else shape
        dtype = self.dtype(index)
        if dtype in FLOATING:
            return KINDS[kind](shape, self.rng).to(dtype)
        return _integers(shape, dtype, self.rng)

    def inputs(self, kind: int) -> list[Tensor]:
        return [self.draw(index, kind) for index in range(len(self.case.tensors))]

    def run(self, inputs: Sequence[Tensor]) -> Run:
        """The op's results. Raises `Unfit` where it does more, or less, than compute tensors from tensors."""
        if time.monotonic() > self.end:
            raise Unfit("takes too long to be tried on sample inputs")
        given = [x.clone() for x in inputs]
        flat = [given[leaf.index] if isinstance(leaf, Slot) else leaf for leaf in self.case.leaves]
        args, kwargs = pytree.tree_unflatten(flat, self.case.spec)
        state = torch.get_rng_state()
        try:
            with torch.no_grad():
                result = self.case.target(*args, **kwargs)
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Refused(f"could not be run on sample inputs: {first[:200]}") from error
        if not torch.equal(state, torch.get_rng_state()):
            raise Unfit("draws random numbers")
        if not all(same(x, y) for x, y in zip(given, inputs, strict=True)):
            raise Unfit("changes its input")
        results = result if isinstance(result, (tuple, list)) else (result,)
        if not all(isinstance(x, Tensor) and x.layout is torch.strided and not x.is_complex() for x in results):
            raise Unfit("returns something that is no plain tensor")
        return tuple(x.detach().clone() for x in results)

    def baseline(self, kind: int) -> tuple[list[Tensor], Run]:
        """Inputs and results, the latter seen twice."""
        inputs = self.inputs(kind)
        first, second = self.run(inputs), self.run(inputs)
        if not agree(first, second):
            raise Unfit("is not deterministic")
        if tuple(tuple(x.shape) for x in first) != self.case.results:
            raise Unfit("returns shapes that depend on the values it is given")
        return inputs, first


def agree(a: Run, b: Run) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def shorter(case: Case) -> Case:
    """``case`` with axes that are not examined made short, where the op takes that; else ``case``."""
    held = {case.tensors[index][0][k] for index, k in case.examine}
    sizes = sorted({s for shape, _ in case.tensors for s in shape if s > 8 and s not in held})
    free = (n for n in range(4, 9 + len(held) + len(sizes)) if n not in held)
    swap = dict(zip(sizes, free, strict=False))
    if case.numbers <= SMALL or not swap:
        return case
    tensors = tuple((tuple(swap.get(s, s) for s in shape), dtype) for shape, dtype in case.tensors)
    wanted = replace(case, tensors=tensors)
    for wide in (torch.float64, None):
        bench = Bench(wanted, wide)
        try:
            found = tuple(tuple(x.shape) for x in bench.run(bench.inputs(0)))
        except Refused:
            continue
        if len(found) == len(case.results) and all(
            len(a) == len(b) and all(x in (y, swap.get(y)) for x, y in zip(a, b, strict=True))
            for a, b in zip(found, case.results, strict=True)
        ):
            return replace(wanted, results=found)
    return case


# ---- what moves ----------------------------------------------------------------------------------------------------


def codes(size: int) -> Iterator[Bools]:
    """Subsets of ``size`` positions such that any position is told from any other by one that holds it alone."""
    positions = np.arange(size)
    for bit in range(max(1, (size - 1).bit_length())):
        one = (positions >> bit) & 1 == 1
        yield one
        yield ~one


def _fills(bench: Bench, index: int, shape: Shape, kind: int) -> Iterator[Tensor]:
    """What a slice is replaced by: other random values, then zeros and large ones."""
    yield bench.draw(index, kind if kind < RANDOM else 0, shape)
    if bench.dtype(index) in FLOATING and kind % 2 == 0 and not bench.quick:
        yield torch.zeros(shape, dtype=bench.dtype(index))
        yield bench.draw(index, 3, shape)


def follow(bench: Bench, place: Place, samples: Sequence[tuple[int, list[Tensor], Run]]) -> dict[int, int]:
    """Per result that an argument's axis moves, the axis whose position i moves exactly when its position i does."""
    index, k = place
    case, size = bench.case, bench.case.tensors[index][0][k]
    name = case.names[index]
    fits = [{j for j, other in enumerate(shape) if other == size} for shape in case.results]
    reached = [{j: np.zeros(size, bool) for j in own} for own in fits]
    touched = [False] * len(fits)
    for kind, inputs, base in samples:
        for code in codes(size):
            where = torch.from_numpy(np.flatnonzero(code))
            shape = inputs[index].index_select(k, where).shape
            for values in _fills(bench, index, tuple(shape), kind):
                changed = list(inputs)
                changed[index] = inputs[index].index_copy(k, where, values)
                for r, (new, old) in enumerate(zip(bench.run(changed), base, strict=True)):
                    if new.shape != old.shape:
                        raise Unfit("returns shapes that depend on the values it is given")
                    moved = differs(new, old)
                    if not bool(moved.any()):
                        continue
                    touched[r] = True
                    _narrow(fits[r], reached[r], moved, code, k, name)
    if not any(touched):
        raise Undecided(f"does not read axis {k} of `{name}`")
    found: dict[int, int] = {}
    for r in (r for r, hit in enumerate(touched) if hit):
        axes = [j for j in fits[r] if reached[r][j].all()]
        if len(axes) != 1:
            raise Undecided(f"does not move one axis of its result with each position of axis {k} of `{name}`")
        found[r] = axes[0]
    return found


def _narrow(fits: set[int], reached: dict[int, Bools], moved: Tensor, code: Bools, k: int, name: str) -> None:
    """Drop the axes along which positions outside ``code`` have moved."""
    seen = ""
    for j in sorted(fits):
        others = [d for d in range(moved.ndim) if d != j]
        along = (moved.any(dim=others) if others else moved).numpy()
        if (along & ~code).any():
            fits.discard(j)
            which = "all" if along.all() else "other positions"
            seen = seen or f"moves {which} of axis {j} when one position of `{name}` moves"
        else:
            reached[j] |= along
    if not fits:
        raise Undecided(seen or f"has no axis in its result for axis {k} of `{name}`")


# ---- what a cut leaves -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tie:
    """Axes of arguments and of results that lose the same positions."""

    size: int
    inputs: tuple[Place, ...]
    results: tuple[Place, ...]


def lengths(size: int, quick: bool) -> list[int]:
    """How many positions to keep: every number for short axes, else small, large and odd ones."""
    if quick:
        return sorted({1, size // 2, size - 1})
    if size <= 12:
        return list(range(1, size))
    return sorted(
        {1, 2, 3, 4, 7, size // 4, size // 3, size // 2, size // 2 + 1, size - 8, size - 3, size - 2, size - 1}
    )


def cut(bench: Bench, ties: Sequence[Tie], samples: Sequence[tuple[int, list[Tensor], Run]]) -> None:
    """Check that the op on cut inputs is the cut result of the op on full ones, whatever the removed slices hold."""
    numpy = np.random.default_rng(7)
    longest = max(len(lengths(tie.size, bench.quick)) for tie in ties)
    for turn in range(longest):
        kept = []
        for tie in ties:
            options = lengths(tie.size, bench.quick)
            kept.append(np.sort(numpy.choice(tie.size, options[turn % len(options)], replace=False)))
        for kind, inputs, _ in samples[turn % 2 :: 2] if longest > 4 else samples:
            _compare(bench, ties, kept, kind, inputs)


def _compare(bench: Bench, ties: Sequence[Tie], kept: Sequence[Any], kind: int, inputs: list[Tensor]) -> None:
    short = list(inputs)
    for tie, keep in zip(ties, kept, strict=True):
        for index, k in tie.inputs:
            short[index] = short[index].index_select(k, torch.from_numpy(keep))
    axes = " and ".join(f"axis {k} of `{bench.case.names[index]}`" for index, k in (tie.inputs[0] for tie in ties))
    try:
        small = bench.run(short)
    except Refused as error:
        raise Undecided(f"does not run where {axes} is shorter: {str(error).partition(': ')[2]}") from error
    for fill in ("as it is", "zero", "random"):
        full = list(inputs)
        for tie, keep in zip(ties, kept, strict=True):
            gone = torch.from_numpy(np.setdiff1d(np.arange(tie.size), keep))
            for index, k in tie.inputs if fill != "as it is" else ():
                shape = full[index].index_select(k, gone).shape
                values = (
                    torch.zeros(shape) if fill == "zero" else bench.draw(index, kind if kind < RANDOM else 0, shape)
                )
                full[index] = full[index].index_copy(k, gone, values.to(full[index].dtype))
        wanted = list(bench.run(full))
        for tie, keep in zip(ties, kept, strict=True):
            for r, j in tie.results:
                wanted[r] = wanted[r].index_select(j, torch.from_numpy(keep))
        if not all(_close(a, b) for a, b in zip(small, wanted, strict=True)):
            raise Undecided(f"computes something else for the other positions where {axes} is shorter")


TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype not in FLOATING:
        return same(a, b)
    tolerance = TOLERANCE[a.dtype]
    a, b = a.double(), b.double()
    finite = b[b.isfinite()].abs()
    floor = tolerance * float(finite.max()) if finite.numel() else 0.0
    return bool((~differs(a, b) | ((a - b).abs() <= floor)).all())


# ---- what a removed slice holds --------------------------------------------------------------------------------------


def holds(bench: Bench, tie: Tie, known: dict[int, float], result: Place) -> float:
    """The number a removed slice of ``result`` holds where the tied slices of some arguments hold ``known`` numbers."""
    r, j = result
    found: set[float] = set()
    for kind in bench.kinds:
        for code in list(codes(tie.size))[: 2 if bench.quick else None]:
            where = torch.from_numpy(np.flatnonzero(code))
            inputs = bench.inputs(kind)
            for index, k in tie.inputs:
                if index in known:
                    inputs[index] = inputs[index].index_fill(k, where, known[index])
            slices = bench.run(inputs)[r].index_select(j, where)
            if slices.dtype in FLOATING and not bool(slices.isfinite().all()):
                return POISON
            found |= set(torch.unique(slices)[:2].double().tolist())
            if len(found) > 1:
                return UNKNOWN
    return found.pop() if found else UNKNOWN
