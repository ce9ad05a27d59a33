"""pooling in numpy, tap by tap, each over all windows at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coppice.kernels._types import narrowed, widened
from coppice.kernels.numba.common import Float, taps

if TYPE_CHECKING:
    from coppice.kernels._pooling import Job


def run(job: Job) -> None:
    """Does what ``coppice.kernels.max_pool`` and ``average_pool`` have checked."""
    out = job.out.array
    if out.size == 0:
        return
    height, width = out.shape[1:]
    outside = -np.inf if job.kind == "max" else 0.0
    x = taps(widened(job.x.array, job.x.type), job.window, height, width, outside)
    high, wide = job.window.kernel
    y = x[:, 0, 0].copy()
    with np.errstate(all="ignore"):
        for ky, kx in [(ky, kx) for ky in range(high) for kx in range(wide)][1:]:
            y = np.maximum(y, x[:, ky, kx]) if job.kind == "max" else y + x[:, ky, kx]
        if job.kind == "average":
            y /= np.multiply.outer(_counted(job, 0), _counted(job, 1))
        out[...] = narrowed(y, job.out.type)


def _counted(job: Job, axis: int) -> Float:
    """How many places of each window along one axis count."""
    window, size = job.window, job.x.array.shape[axis + 1]
    first = np.arange(job.out.array.shape[axis + 1]) * window.stride[axis] - window.padding[axis]
    place = first[:, None] + np.arange(window.kernel[axis]) * window.dilation[axis]
    counts = place < size + job.after[axis] if job.count_padding else (place >= 0) & (place < size)
    counted: Float = counts.sum(axis=1, dtype=np.float32)
    return counted
