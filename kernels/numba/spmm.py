"""spmm_f32 in numba: the panels and slabs of ``x86/spmm_f32.h``, with four entries to a pass in place of registers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

if TYPE_CHECKING:
    from coppice.kernels._csr import CSR

#: Pixels a row is extended by at a time: a slab of 192 columns of them fits the second-level cache.
PANEL = 512


def spmm_f32(
    weight: CSR,
    x: NDArray[np.float32],
    out: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    residual: NDArray[np.float32] | None,
    bounds: tuple[float, float],
    strides: tuple[int, int],
) -> None:
    """Writes ``clamp(weight @ x + bias[:, None] + residual, *bounds)`` to ``out``.

    x [cols, pixels] and out [rows, pixels] have contiguous rows that stand ``strides`` elements apart. The arguments
    are those that ``coppice.kernels.spmm`` has checked; indices are not checked again.
    """
    if out.size == 0:
        return
    out[...] = 0.0 if bias is None and residual is None else _start(bias, residual)
    matrix = (weight.rows, weight.cols, weight.slab, weight.starts, weight.columns, weight.values)
    _compiled()(*matrix, x.shape[1], _flat(x), strides[0], _flat(out), strides[1])
    np.clip(out, *bounds, out=out)


def _start(bias: NDArray[np.float32] | None, residual: NDArray[np.float32] | None) -> NDArray[np.float32]:
    column = np.zeros((1, 1), np.float32) if bias is None else bias[:, None]
    return column if residual is None else column + residual


def _flat(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The memory of a matrix from its first element to its last: numba then knows that steps are one element."""
    if array.size == 0:
        return np.zeros(1, np.float32)
    extent = ((array.shape[0] - 1) * array.strides[0]) // array.itemsize + array.shape[1]
    return as_strided(array, (extent,), (array.itemsize,))


def _add_products(
    rows: int,
    cols: int,
    slab: int,
    starts: Any,
    columns: Any,
    values: Any,
    pixels: int,
    x: Any,
    x_stride: int,
    y: Any,
    y_stride: int,
) -> None:
    """y += weight @ x, panel by panel, slab by slab, row by row."""
    slabs = max(1, (cols + slab - 1) // slab)
    for first in range(0, pixels, PANEL):
        width = min(PANEL, pixels - first)
        for part in range(slabs):
            base = part * slab * x_stride + first
            for row in range(rows):
                # Indices as int64: numba takes int64 + uint64 for a float.
                entry, end = np.int64(starts[part * rows + row]), np.int64(starts[part * rows + row + 1])
                sums = y[row * y_stride + first : row * y_stride + first + width]
                while end - entry >= 4:
                    at0 = base + np.int64(columns[entry]) * x_stride
                    at1 = base + np.int64(columns[entry + 1]) * x_stride
                    at2 = base + np.int64(columns[entry + 2]) * x_stride
                    at3 = base + np.int64(columns[entry + 3]) * x_stride
                    x0, x1 = x[at0 : at0 + width], x[at1 : at1 + width]
                    x2, x3 = x[at2 : at2 + width], x[at3 : at3 + width]
                    v0, v1, v2, v3 = values[entry], values[entry + 1], values[entry + 2], values[entry + 3]
                    for pixel in range(width):
                        sums[pixel] += v0 * x0[pixel] + v1 * x1[pixel] + v2 * x2[pixel] + v3 * x3[pixel]
                    entry += 4
                for single in range(entry, end):
                    at = base + np.int64(columns[single]) * x_stride
                    source, value = x[at : at + width], values[single]
                    for pixel in range(width):
                        sums[pixel] += value * source[pixel]


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., None]:
    import numba

    # Contraction is the one relaxation that leaves NaN and infinities alone.
    compiled: Callable[..., None] = numba.njit(fastmath={"contract"}, nogil=True, error_model="numpy")(_add_products)
    return compiled
