"""``softmax`` along the last axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._call import Call, address, primitive, refuse_overlap, shaped, type_number
from coppice.kernels._pool import Pool


@primitive
def softmax(
    x: Any, *, scale: float = 1.0, out: Any = None, pool: Pool | None = None, variant: str | None = None
) -> Job:
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
    return Job(out, pool, variant, inputs, outputs, scale)


@dataclass(eq=False)
class Job(Call):
    """Checked arguments of one call."""

    primitive: ClassVar[str] = "softmax"
    x: Buffer
    out: Buffer
    scale: float

    def fill(self, args: Any) -> None:
        args.type, args.scale = type_number(self.x.type), self.scale
        args.rows, args.pixels = self.x.array.shape
        args.x, args.x_stride = address(self.x), self.x.stride
        args.y, args.y_stride = address(self.out), self.out.stride
