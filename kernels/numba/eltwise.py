"""eltwise in numpy, whole arrays at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coppice.kernels._types import narrowed, widened
from coppice.kernels.numba.common import activated

if TYPE_CHECKING:
    from coppice.kernels._eltwise import Job


def run(job: Job) -> None:
    """Does what ``coppice.kernels.eltwise`` has checked."""
    with np.errstate(over="ignore", invalid="ignore"):
        y = widened(job.x.array, job.x.type) * np.float32(job.a)
        if job.z is not None:
            y += widened(job.z.array, job.z.type) * np.float32(job.b)
        y = np.clip(activated(y, job.activation), job.lower, job.upper)
        job.out.array[...] = narrowed(y, job.out.type)
