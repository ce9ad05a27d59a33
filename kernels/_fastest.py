"""The layout of a weight that runs fastest, by measuring."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any

import numpy as np

from coppice.kernels._bands import HEIGHTS, fast_slab
from coppice.kernels._buffers import buffer, empty_like
from coppice.kernels._convert import triplets
from coppice.kernels._errors import KernelError
from coppice.kernels._matmul import matmul, out_shape
from coppice.kernels._pool import Pool
from coppice.kernels._types import Array
from coppice.kernels._variants import includes, isa
from coppice.kernels._weight import Type, Weight
from coppice.kernels._window import Window

#: Blocks are tried where they hold at most so many values for each that is not zero.
FILL = 2.0
#: Straight-line code is tried up to so many bytes of values: twelve times as much leaves every second-level cache.
CODE_MOST = 1 << 20
#: The layout with the fewest bytes wins against those that are at most so much faster.
EQUAL = 1.02
LEAST_ROUNDS = 5
#: Bytes that are read between two calls, more than a core's own caches hold.
CACHES = 1 << 22


@dataclass(frozen=True)
class Choice:
    """What was measured, and what came of it.

    Attributes:
        weight: the fastest, with its code where that is part of it.
        layout: its name among ``microseconds``.
        microseconds: the median time of a call by layout, fastest first.
    """

    weight: Weight
    layout: str
    microseconds: dict[str, float]


def fastest(
    matrix: Any,
    x: Any,
    *,
    window: Window | None = None,
    type: Type = "float32",  # noqa: A002 (the name of the field)
    arithmetic: str = "float32",
    pool: Pool | None = None,
    cache: str | os.PathLike[str] | None = None,
    seconds: float = 0.5,
) -> Choice:
    """The weight of ``matrix`` in the layout whose product with activations like ``x`` takes the least time here.

    Tried are CSR, straight-line code where the machine has it, blocks of 4, 8 and 16 rows where the zeros of the matrix
    form such, and dense; all hold the same matrix. They take turns, so that what else the machine does meanwhile
    touches them alike; still, two that are nearly as fast may come out differently from one run to the next. Before
    each call the weight leaves the nearer caches, as the layers of a network make it do: that counts against code.

    Args:
        matrix: as of :meth:`Weight.sparse`.
        x: activations of the shape and type that calls will have; what numbers they hold matters little.
        window, arithmetic, pool: as calls will have them, see :func:`matmul`.
        type: of the values.
        cache: a folder that keeps straight-line code, see :meth:`Weight.compiled`.
        seconds: to measure for, in all; each layout runs five times at least.

    Raises:
        KernelError: an argument that :meth:`Weight.sparse` or :func:`matmul` refuses, or seconds below zero.
    """
    if not seconds >= 0:
        raise KernelError(f"{seconds} is below zero", place="seconds", remedy="half a second is enough for most layers")
    calls: dict[str, tuple[Weight, Callable[[], None]]] = {}
    inputs = buffer("x", x, 2 if window is None else 3)
    for name, weight in _candidates(matrix, x, window, type, cache):
        out = empty_like(x, out_shape(weight, inputs, window))
        calls[name] = weight, matmul.bind(weight, x, window=window, out=out, arithmetic=arithmetic, pool=pool)
    times = _taken([call for _, call in calls.values()], inputs.array, seconds)
    found = dict(sorted(zip(calls, times, strict=True), key=lambda item: item[1]))
    limit = EQUAL * min(found.values())
    chosen = min((name for name in found if found[name] <= limit), key=lambda name: _nbytes(calls[name][0]))
    return Choice(calls[chosen][0], chosen, {name: round(1e6 * taken, 3) for name, taken in found.items()})


def _nbytes(weight: Weight) -> int:
    return weight.nbytes + (0 if weight.code is None else weight.code.nbytes)


def _candidates(
    matrix: Any,
    x: Any,
    window: Window | None,
    kind: Type,
    cache: str | os.PathLike[str] | None,
) -> Iterator[tuple[str, Weight]]:
    rows, cols, row, column, value = triplets(matrix)
    shape = np.shape(x)
    pixels = shape[-1] if window is None or len(shape) != 3 else int(np.prod(window.out(shape[1], shape[2])))
    present = value != 0
    density = float(present.sum()) / (rows * cols) if rows and cols else 0.0
    narrow = fast_slab(cols, density, pixels, kind=kind)
    for slab in dict.fromkeys((narrow, min(cols or 1, 2 * narrow))):
        weight = Weight.sparse(matrix, type=kind, slab=slab)
        yield f"csr/{slab}", weight
        if includes(isa(), "avx512") and 0 < 4 * weight.entries <= CODE_MOST and pixels > 1:
            yield f"code/{slab}", weight.compiled(cache)
    for height in HEIGHTS[1:]:
        blocks = len(np.unique(row[present] // height * cols + column[present])) if rows and cols else 0
        if blocks * height <= FILL * present.sum():
            yield f"{height}x1", Weight.sparse(matrix, height=height, type=kind, pixels=pixels)
    yield "dense", Weight.dense(matrix, type=kind)


def _taken(calls: list[Callable[[], None]], x: Array, seconds: float) -> list[float]:
    """Median seconds of each call, in turns, with x in the caches and the weight not; a first call does not count."""
    other = np.zeros(CACHES // 8)

    def taken(call: Callable[[], None]) -> float:
        other.sum()
        x.max(initial=0)
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    begin = time.perf_counter()
    for call in calls:
        call()
        taken(call)
    round_ = time.perf_counter() - begin
    rounds = max(LEAST_ROUNDS, ceil(min(1000.0, seconds / max(1e-7, round_))))
    found: list[list[float]] = [[] for _ in calls]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for call, times in zip(calls, found, strict=True):
                times.append(taken(call))
    finally:
        if collecting:
            gc.enable()
    return [median(times) for times in found]
