"""``eltwise``: scaled sums of two arrays, with an activation; alone, activations and casts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coppice.kernels._activations import Activation, activation_of
from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._call import Call, address, primitive, refuse_overlap, shaped, type_number
from coppice.kernels._errors import KernelError
from coppice.kernels._pool import Pool
from coppice.kernels._types import ACTIVATION_TYPES

_REMEDY = "x, z and out have one shape; out has the type that was asked for"


@primitive
def eltwise(
    x: Any,
    z: Any = None,
    *,
    a: float = 1.0,
    b: float = 1.0,
    activation: Activation = "none",
    type: str | None = None,  # noqa: A002
    out: Any = None,
    pool: Pool | None = None,
    variant: str | None = None,
) -> Job:
    """``activation(a * x + b * z)`` element by element, in float32, rounded to the type of ``out``.

    Arrays are used in place as by :func:`matmul`. NaN and infinities propagate.

    Args:
        x: any shape of two axes or more, all but the first contiguous; float32, float16 or bfloat16.
        z: the same shape, of any of these types; None: nothing is added.
        a, b: what they are multiplied by.
        activation: a name from ``ACTIVATIONS``, or (lower, upper) to clamp to.
        type: of a new ``out`` (bfloat16 for tensors only); None: that of ``out``, or else of ``x``.
        out: the same shape, of any of these types; written and returned; None: a new one of the same kind as ``x``. May
            be ``x`` or ``z`` itself.
        pool: threads to share the work; None: the caller's thread alone.
        variant: a name from :func:`variants`; None: the fastest.

    Raises:
        KernelError: a shape, type, stride, device or overlap that is not as above; a gradient is wanted.
        IsaError: the variant is unknown, or cannot run here.
        KernelsUnavailable: there is neither a C library nor numba.
    """
    inputs = buffer("x", x, max(2, getattr(x, "ndim", 2)), packed=True)
    shape, dimensions = inputs.array.shape, inputs.array.ndim
    if type is not None and type not in ACTIVATION_TYPES:
        raise KernelError(f"there is no {type!r}", place="type", remedy=f"use one of {', '.join(ACTIVATION_TYPES)}")
    added = None
    if z is not None:
        added = buffer("z", z, dimensions, packed=True)
        shaped("z", added, shape, added.type, _REMEDY)
    if out is None:
        out = empty_like(x, shape, type)
    outputs = buffer("out", out, dimensions, packed=True)
    shaped("out", outputs, shape, type or outputs.type, _REMEDY)
    same = [name for name, other in (("x", inputs), ("z", added)) if other is not None and other.type == outputs.type]
    refuse_overlap(outputs, {"x": inputs, "z": added}, in_place=tuple(same))
    return Job(out, pool, variant, inputs, added, a, b, outputs, *activation_of(activation))


@dataclass(eq=False)
class Job(Call):
    """Checked arguments of one call."""

    primitive: ClassVar[str] = "eltwise"
    x: Buffer
    z: Buffer | None
    a: float
    b: float
    out: Buffer
    activation: int
    lower: float
    upper: float

    def fill(self, args: Any) -> None:
        args.x_type, args.y_type, args.a, args.b = type_number(self.x.type), type_number(self.out.type), self.a, self.b
        args.rows, args.pixels = self.x.array.shape[0], self.x.pixels
        args.x, args.x_stride = address(self.x), self.x.stride
        args.y, args.y_stride = address(self.out), self.out.stride
        if self.z is not None:
            args.z, args.z_stride, args.z_type = address(self.z), self.z.stride, type_number(self.z.type)
        args.activation, args.lower, args.upper = self.activation, self.lower, self.upper
