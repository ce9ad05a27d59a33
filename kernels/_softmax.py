"""``softmax`` along the last axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._call import address, bind_c, refuse_overlap, shaped, type_number
from coppice.kernels._load import load
from coppice.kernels._pool import Pool
from coppice.kernels._variants import Variant, pick


def softmax(
    x: Any, *, scale: float = 1.0, out: Any = None, pool: Pool | None = None, variant: str | None = None
) -> Any:
    """``exp(scale * x) / sum(exp(scale * x))`` along each row, in float32 and without overflow.

    Arrays are used in place as by :func:`matmul`. Where x is -inf the result is 0 (a mask); a row with NaN, with
    +inf, or with nothing but -inf is NaN throughout, as torch has it.

    Args:
        x: [rows, anything], float32, float16 or bfloat16.
        scale: what x is multiplied by first, 1 / sqrt(width of a head) in attention.
        out: as ``x``; written and returned; None: a new one of the same kind. May be ``x`` itself.
        pool: threads to share the work; None: the caller's thread alone.
        variant: a name from :func:`variants`; None: the fastest.

    Raises:
        KernelError: a shape, type, stride, device or overlap that is not as above; a gradient is wanted.
        IsaError: the variant is unknown, or cannot run here.
        KernelsUnavailable: there is neither a C library nor numba.
    """
    inputs = buffer("x", x, 2)
    if out is None:
        out = empty_like(x, inputs.array.shape)
    outputs = shaped("out", buffer("out", out, 2), inputs.array.shape, inputs.type, "out is as x")
    refuse_overlap(outputs, {"x": inputs}, in_place=("x",))
    job, chosen = Job(inputs, outputs, scale), pick("softmax", variant)
    (_bind_numba(job) if chosen.index < 0 else _bind_c(chosen, job, pool))()
    return out


@dataclass(frozen=True)
class Job:
    """Checked arguments of one call."""

    x: Buffer
    out: Buffer
    scale: float


def _bind_c(variant: Variant, job: Job, pool: Pool | None) -> Callable[[], None]:
    library = load()
    args = library.ffi.new("coppice_softmax_args *")
    args.type, args.scale = type_number(job.x.type), job.scale
    args.rows, args.pixels = job.x.array.shape
    args.x, args.x_stride, args.y, args.y_stride = address(job.x), job.x.stride, address(job.out), job.out.stride
    return bind_c(variant, args, library.c.coppice_softmax_scratch(args), pool, job)


def _bind_numba(job: Job) -> Callable[[], None]:
    from coppice.kernels.numba.softmax import run

    return lambda: run(job)
