"""norm in numpy, whole arrays at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coppice.kernels._types import narrowed, widened

if TYPE_CHECKING:
    from coppice.kernels._norm import Job


def run(job: Job) -> None:
    """Does what ``coppice.kernels.layer_norm`` and ``rms_norm`` have checked."""
    if job.out.array.size == 0:
        return
    along = (-1, 1) if job.axis == 0 else (1, -1)
    with np.errstate(all="ignore"):
        y = widened(job.x.array, job.x.type)
        if not job.rms:
            y = y - y.mean(axis=job.axis, keepdims=True)
        y = y / np.sqrt(np.square(y).mean(axis=job.axis, keepdims=True) + np.float32(job.eps))
        if job.weight is not None:
            y *= job.weight.array.reshape(along)
        if job.bias is not None:
            y += job.bias.array.reshape(along)
        job.out.array[...] = narrowed(y, job.out.type)
