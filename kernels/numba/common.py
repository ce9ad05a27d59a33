"""Windows and activations as more than one primitive needs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import erf, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

if TYPE_CHECKING:
    from coppice.kernels._window import Window

Float = NDArray[np.float32]


def taps(x: Float, window: Window, height: int, width: int, outside: float = 0.0) -> Float:
    """A view [channels, ky, kx, height, width] of what each tap meets in each window, ``outside`` where x has ended."""
    channels, rows, columns = x.shape
    (ky, kx), (sy, sx), (dy, dx), (py, px) = window.kernel, window.stride, window.dilation, window.padding
    high = max(rows + py, (height - 1) * sy + (ky - 1) * dy + 1)
    wide = max(columns + px, (width - 1) * sx + (kx - 1) * dx + 1)
    padded = np.full((channels, high, wide), outside, np.float32)
    padded[:, py : py + rows, px : px + columns] = x
    c, r, s = padded.strides
    return as_strided(padded, (channels, ky, kx, height, width), (c, r * dy, s * dx, r * sy, s * sx))


def windows(x: Float, window: Window, height: int, width: int) -> Float:
    """[channels * kernel, height * width]: the columns laid out, which the C kernels never do as a whole."""
    view = taps(x, window, height, width)
    return np.ascontiguousarray(view).reshape(len(x) * window.kernel[0] * window.kernel[1], height * width)


def activated(z: Float, activation: int) -> Float:
    """By the number that ``abi.h`` gives them."""
    if activation == 1:
        gate: Float = np.clip(z / np.float32(6) + np.float32(0.5), np.float32(0), np.float32(1))
        return z * gate
    if activation == 2:
        sigmoid: Float = np.reciprocal(np.float32(1) + np.exp(-z))
        return sigmoid
    if activation == 3:
        silu: Float = np.divide(z, np.float32(1) + np.exp(-z), dtype=np.float32)
        return silu
    if activation == 4:
        return _gelu()(z)
    return z


@lru_cache(maxsize=1)
def _gelu() -> Callable[[Float], Float]:
    import numba

    def exact(z: float) -> float:
        return z * 0.5 * (1.0 + erf(z * sqrt(0.5)))

    compiled: Callable[[Float], Float] = numba.vectorize(["float32(float32)"])(exact)
    return compiled
