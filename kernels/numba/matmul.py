"""matmul in numba: panels of pixels and slabs of columns, with four entries to a pass in place of registers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from coppice.kernels._types import narrowed, widened
from coppice.kernels.numba.common import activated, windows

if TYPE_CHECKING:
    from coppice.kernels._matmul import Job
    from coppice.kernels._weight import Weight

#: Pixels a row is extended by at a time: a slab of 192 columns of them fits the second-level cache.
PANEL = 512

Float = NDArray[np.float32]


def run(job: Job) -> None:
    """Does what ``coppice.kernels.matmul`` has checked; indices are not checked again."""
    weight, out = job.weight, job.out.array
    if out.size == 0:
        return
    x = widened(job.x.array, job.x.type)
    if job.window is not None:
        x = windows(x, job.window, out.shape[1], out.shape[2])
    sums = _products(weight, x).reshape(out.shape)
    column = (-1, *[1] * (out.ndim - 1))
    with np.errstate(over="ignore", invalid="ignore"):
        if weight.scales is not None:
            sums *= weight.scales.reshape(column)
        if job.bias is not None:
            sums += job.bias.array.reshape(column)
        if job.residual is not None:
            sums += widened(job.residual.array, job.residual.type)
        out[...] = narrowed(np.clip(activated(sums, job.activation), job.lower, job.upper), job.out.type)


def _products(weight: Weight, x: Float) -> Float:
    """weight @ x without the scales, float32 [rows, pixels]."""
    band, column = weight.places()
    lists = weight.slabs * weight.bands
    if weight.starts is None:
        widths = [min(weight.slab, weight.cols - first) for first in range(0, weight.cols, weight.slab)]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.repeat(widths, weight.bands).astype(np.int64))])
    else:
        starts = weight.starts.astype(np.int64)
    del band
    sums = np.zeros((weight.bands * weight.height, x.shape[1]), np.float32)
    if len(starts) == lists + 1 and weight.entries:
        values = np.ascontiguousarray(widened(weight.values, weight.type).T)  # [height, entries]
        for row in range(weight.height):
            _compiled()(weight.bands, weight.slabs, starts, column, values[row], x.shape[1], _flat(x), _pitch(x),
                        _flat(sums[row:]), weight.height * sums.shape[1])  # fmt: skip
    return sums[: weight.rows]


def _pitch(array: Float) -> int:
    return array.strides[0] // array.itemsize if array.shape[0] > 1 else array.shape[1]


def _flat(array: Float) -> Float:
    """The memory of a matrix from its first element to its last: numba then knows that steps are one element."""
    if array.size == 0:
        return np.zeros(1, np.float32)
    extent = ((array.shape[0] - 1) * array.strides[0]) // array.itemsize + array.shape[1]
    return as_strided(array, (extent,), (array.itemsize,))


def _add_products(
    bands: int,
    slabs: int,
    starts: Any,
    columns: Any,
    values: Any,
    pixels: int,
    x: Any,
    x_stride: int,
    y: Any,
    y_stride: int,
) -> None:
    """y += weight @ x for one row of every band, panel by panel, slab by slab, band by band."""
    for first in range(0, pixels, PANEL):
        width = min(PANEL, pixels - first)
        for part in range(slabs):
            for band in range(bands):
                entry, end = starts[part * bands + band], starts[part * bands + band + 1]
                sums = y[band * y_stride + first : band * y_stride + first + width]
                while end - entry >= 4:
                    at0 = columns[entry] * x_stride + first
                    at1 = columns[entry + 1] * x_stride + first
                    at2 = columns[entry + 2] * x_stride + first
                    at3 = columns[entry + 3] * x_stride + first
                    x0, x1 = x[at0 : at0 + width], x[at1 : at1 + width]
                    x2, x3 = x[at2 : at2 + width], x[at3 : at3 + width]
                    v0, v1, v2, v3 = values[entry], values[entry + 1], values[entry + 2], values[entry + 3]
                    for pixel in range(width):
                        sums[pixel] += v0 * x0[pixel] + v1 * x1[pixel] + v2 * x2[pixel] + v3 * x3[pixel]
                    entry += 4
                for single in range(entry, end):
                    at = columns[single] * x_stride + first
                    source, value = x[at : at + width], values[single]
                    for pixel in range(width):
                        sums[pixel] += value * source[pixel]


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., None]:
    import numba

    # Contraction is the one relaxation that leaves NaN and infinities alone.
    compiled: Callable[..., None] = numba.njit(fastmath={"contract"}, nogil=True, error_model="numpy")(_add_products)
    return compiled
