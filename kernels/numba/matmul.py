"""matmul in numba: panels of pixels and slabs of columns as in C, the sums of a row and a panel in vector registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from coppice.kernels._types import Array, narrowed, widened
from coppice.kernels.numba.common import activated, windows

if TYPE_CHECKING:
    from coppice.kernels._matmul import Job
    from coppice.kernels._weight import Weight

#: Lanes of a vector, vectors of the widest panel, and pixels up to which each is summed up by itself.
LANES, WIDEST, FEW = 16, 5, 3

Float = NDArray[np.float32]


def bind(job: Job) -> Callable[[], None]:
    """The call of what ``coppice.kernels.matmul`` has checked; indices are not checked again."""
    out, kind = job.out.array, job.out.type
    if out.size == 0:
        return lambda: None
    bias = None if job.bias is None else job.bias.array
    weight = job.weight if job.weight.slab else type(job.weight).sparse(job.weight, type=job.weight.type)
    plain = job.x.type == "float32" and job.window is None and job.residual is None and job.activation == 0
    if plain:
        pitch = job.out.stride * out.itemsize
        y = as_strided(out, (out.shape[0], job.out.pixels), (pitch, out.itemsize))
        return _product(weight, job.x.array, bias, (job.lower, job.upper), y)

    def call() -> None:
        x = widened(job.x.array, job.x.type)
        if job.window is not None:
            x = windows(x, job.window, out.shape[1], out.shape[2])
        sums = np.empty(out.shape, np.float32)
        _product(weight, x, bias, (-np.inf, np.inf), sums.reshape(out.shape[0], -1))()
        with np.errstate(over="ignore", invalid="ignore"):
            if job.residual is not None:
                sums += widened(job.residual.array, job.residual.type)
            out[...] = narrowed(np.clip(activated(sums, job.activation), job.lower, job.upper), kind)

    return call


@dataclass(frozen=True, eq=False)
class _Held:
    """A weight as the loops below read it: always with lists, values in float32."""

    starts: Array
    columns: Array
    values: Float
    scales: Float


_HELD: WeakKeyDictionary[Weight, _Held] = WeakKeyDictionary()


def _held(weight: Weight) -> _Held:
    found = _HELD.get(weight)
    if found is None:
        starts, columns = weight.starts, weight.columns
        if starts is None or columns is None:
            widths = np.minimum(weight.slab, weight.cols - weight.slab * np.arange(weight.slabs))
            starts = np.concatenate([[0], np.cumsum(np.repeat(widths, weight.bands))]).astype(np.uint32)
            columns = (weight.places()[1] % weight.slab).astype(np.uint16)
        values = widened(weight.values, weight.type).reshape(-1)
        scales = np.zeros(0, np.float32) if weight.scales is None else weight.scales
        found = _HELD[weight] = _Held(_flat(starts), _flat(columns), _flat(values), _flat(scales))
    return found


def _flat(array: Array) -> Array:
    """The memory of an array from its first element to its last, for reading: so numba compiles for one type alone."""
    extent = sum((n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)) // array.itemsize + 1
    return as_strided(array, (extent if array.size else 0,), (array.itemsize,), writeable=False)


def _product(weight: Weight, x: Float, bias: Float | None, bounds: tuple[float, float], y: Float) -> Callable[[], None]:
    """The call that makes y = clamp(weight @ x + bias), x and y float32 with contiguous rows; y is not empty."""
    pixels = y.shape[1]
    if FEW < pixels < LANES:
        wide, whole = np.zeros((x.shape[0], LANES), np.float32), np.empty((y.shape[0], LANES), np.float32)
        product = _product(weight, wide, bias, bounds, whole)

        def padded() -> None:
            wide[:, :pixels] = x
            product()
            y[...] = whole[:, :pixels]

        return padded
    held = _held(weight)
    offsets = np.zeros(weight.rows, np.float32) if bias is None else bias
    pitch = y.strides[0] // y.itemsize if len(y) > 1 else pixels
    to = as_strided(y, ((len(y) - 1) * pitch + pixels,), (y.itemsize,))
    sizes = (weight.rows, weight.cols, weight.bands, weight.slabs, weight.slab, weight.height)
    arrays = (held.starts, held.columns, held.values, held.scales, _flat(offsets), *map(np.float32, bounds), to, pitch)
    x_pitch = x.strides[0] // x.itemsize if len(x) > 1 else pixels
    if pixels <= FEW:
        return partial(_compiled_few(weight.height == 1), *sizes, *arrays, pixels, _flat(x), x_pitch)
    vectors = -(-pixels // LANES)
    panels = -(-vectors // WIDEST)
    least, wider = divmod(vectors, panels)
    room = np.empty(min(weight.slab, weight.cols) * WIDEST * LANES + LANES, np.float32)
    room = room[-room.ctypes.data % 64 // room.itemsize :]
    parts, first = [], 0
    for width, count in ((least + 1, wider), (least, panels - wider)):
        if count:
            compiled = _compiled(width, weight.height == 1)
            parts.append(partial(compiled, *sizes, *arrays, pixels, _flat(x), x_pitch, first, count, room))
        first += width * count * LANES

    def call() -> None:
        for part in parts:
            part()

    return call


@cache
def _compiled(vectors: int, csr: bool) -> Callable[..., None]:
    """y of ``count`` panels of ``vectors`` vectors, from pixel ``first`` on.

    The last vector of the last panel ends where the row ends, so it may cover pixels of the one before it, or of the
    panel before it: they are computed twice.
    """
    import numba

    from coppice.kernels.numba.panels import clamp, load, multiply_add, splat, store

    pitch, inside = vectors * LANES, (vectors - 1) * LANES

    def run(
        rows: int, cols: int, bands: int, slabs: int, slab: int, height: int, starts: Any, columns: Any, values: Any,
        scales: Any, bias: Any, lower: Any, upper: Any, y: Any, y_stride: int, pixels: int, x: Any, x_stride: int,
        first: int, count: int, room: Any,
    ) -> None:  # fmt: skip
        for at in range(first, first + count * pitch, pitch):
            last = min(pixels - at, pitch) - LANES
            for part in range(slabs):
                begin = part * slab
                for column in range(min(slab, cols - begin)):
                    store(room, column * pitch, inside, load(vectors, x, (begin + column) * x_stride + at, last))
                for band in range(bands):
                    entry = np.int64(starts[part * bands + band])
                    end = np.int64(starts[part * bands + band + 1])
                    top = band * height
                    for row in range(1 if csr else min(height, rows - top)):
                        place = (top + row) * y_stride + at
                        if part > 0:
                            total = load(vectors, y, place, last)
                        elif scales.size:
                            total = splat(vectors, np.float32(0))
                        else:
                            total = splat(vectors, bias[top + row])
                        for one in range(entry, end):
                            value = values[one] if csr else values[one * height + row]
                            held = load(vectors, room, np.int64(columns[one]) * pitch, inside)
                            total = multiply_add(value, held, total)
                        if part + 1 == slabs:
                            if scales.size:
                                total = multiply_add(scales[top + row], total, splat(vectors, bias[top + row]))
                            total = clamp(total, lower, upper)
                        store(y, place, last, total)

    compiled: Callable[..., None] = numba.njit(nogil=True, error_model="numpy", boundscheck=False)(run)
    return compiled


@cache
def _compiled_few(csr: bool) -> Callable[..., None]:
    """y, pixel by pixel: four sums for each, against the latency of the addition."""
    import numba

    def run(
        rows: int, cols: int, bands: int, slabs: int, slab: int, height: int, starts: Any, columns: Any, values: Any,
        scales: Any, bias: Any, lower: Any, upper: Any, y: Any, y_stride: int, pixels: int, x: Any, x_stride: int,
    ) -> None:  # fmt: skip
        room = np.empty(cols, np.float32)
        for pixel in range(pixels):
            for column in range(cols):
                room[column] = x[column * x_stride + pixel]
            for row in range(rows):
                band, step, inside = (row, 1, 0) if csr else (row // height, height, row % height)
                a = b = c = d = np.float32(0)
                for part in range(slabs):
                    near = room[part * slab :]  # its index is a column, without a sign that numba would look at
                    entry = np.int64(starts[part * bands + band])
                    end = np.int64(starts[part * bands + band + 1])
                    for one in range(entry, end - 3, 4):
                        a += values[one * step + inside] * near[columns[one]]
                        b += values[(one + 1) * step + inside] * near[columns[one + 1]]
                        c += values[(one + 2) * step + inside] * near[columns[one + 2]]
                        d += values[(one + 3) * step + inside] * near[columns[one + 3]]
                    for one in range(end - (end - entry) % 4, end):
                        a += values[one * step + inside] * near[columns[one]]
                total = ((a + b) + (c + d)) * (scales[row] if scales.size else np.float32(1)) + bias[row]
                total = lower if total < lower else total
                y[row * y_stride + pixel] = upper if total > upper else total

    # Contraction is the one relaxation that leaves NaN and infinities alone.
    options = {"fastmath": {"contract"}, "nogil": True, "error_model": "numpy", "boundscheck": False}
    compiled: Callable[..., None] = numba.njit(**options)(run)
    return compiled
