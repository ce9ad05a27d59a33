"""depthwise tap by tap, each over all windows at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coppice.kernels._types import narrowed, widened
from coppice.kernels.numba.common import activated, taps

if TYPE_CHECKING:
    from coppice.kernels._depthwise import Job


def run(job: Job) -> None:
    """Does what ``coppice.kernels.depthwise`` has checked."""
    out, weight = job.out.array, job.weight.array
    if out.size == 0:
        return
    high, wide = weight.shape[1:]
    x = taps(widened(job.x.array, job.x.type), job.window, *out.shape[1:])
    sums = np.zeros(out.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for row, source in enumerate(job.sources):
            for ky in range(high):
                for kx in range(wide):
                    sums[row] += weight[row, ky, kx] * x[source, ky, kx]
        if job.bias is not None:
            sums += job.bias.array[:, None, None]
        out[...] = narrowed(np.clip(activated(sums, job.activation), job.lower, job.upper), job.out.type)
