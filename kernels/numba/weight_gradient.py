"""weight_gradient band by band: its rows of dy times the columns of x that it has entries for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coppice.kernels._types import widened
from coppice.kernels.numba.common import windows

if TYPE_CHECKING:
    from coppice.kernels._weight import Weight
    from coppice.kernels._weight_gradient import Job
    from coppice.kernels.numba.common import Float


def run(job: Job) -> None:
    """Does what ``coppice.kernels.weight_gradient`` has checked."""
    dy, x = widened(job.dy.array, job.dy.type), widened(job.x.array, job.x.type)
    if job.window is not None:
        x = windows(x, job.window, *dy.shape[1:])
        dy = dy.reshape(len(dy), job.dy.pixels)
    with np.errstate(over="ignore", invalid="ignore"):
        gradient = dy @ x.T if job.weight is None else _entries(job.weight, dy, x)
        bias = dy.sum(axis=1)
        job.out.array[...] = job.out.array + gradient if job.accumulate else gradient
        if job.bias is not None:
            job.bias.array[...] = job.bias.array + bias if job.accumulate else bias


def _entries(weight: Weight, dy: Float, x: Float) -> Float:
    """[entries, height], zero in rows past the matrix."""
    band, column = weight.places()
    gradient = np.zeros(weight.values.shape, np.float32)
    order = np.argsort(band, kind="stable")
    firsts = np.searchsorted(band[order], np.arange(weight.bands + 1))
    for number in range(weight.bands):
        rows = dy[number * weight.height : (number + 1) * weight.height]
        own = order[firsts[number] : firsts[number + 1]]
        gradient[own, : len(rows)] = x[column[own]] @ rows.T
    return gradient
