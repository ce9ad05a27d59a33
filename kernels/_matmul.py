"""``matmul``: weight times activations, or a convolution, with bias, residual and activation in the same pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coppice.kernels._activations import Activation, activation_of
from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._call import Call, address, primitive, refuse_overlap, shaped, type_number
from coppice.kernels._code import as_c
from coppice.kernels._errors import KernelError
from coppice.kernels._load import load
from coppice.kernels._pool import Pool
from coppice.kernels._types import TYPES
from coppice.kernels._weight import Weight
from coppice.kernels._window import Window, fill_window

_REMEDY = "x is [cols, pixels], out and residual [rows, pixels] of x's type, bias float32 [rows]"

#: What products and sums may be computed in.
ARITHMETIC = tuple(TYPES)


@primitive
def matmul(
    weight: Weight,
    x: Any,
    *,
    window: Window | None = None,
    out: Any = None,
    bias: Any = None,
    residual: Any = None,
    activation: Activation = "none",
    arithmetic: str = "float32",
    pool: Pool | None = None,
    variant: str | None = None,
) -> Job:
    """``activation(weight @ x + bias[:, None] + residual)``; with ``window`` the convolution of ``x`` by ``weight``.

    Arrays are numpy arrays (float32, float16) or torch CPU tensors (bfloat16 too), used in place without a copy; torch
    is not imported unless one is given. Rows are contiguous along pixels but may stand apart (a slice of a wider
    array), at any address that suits their type. NaN and infinities propagate; what has no entry in
    ``weight`` takes no part (0 * inf never arises from it).

    Args:
        weight: [rows, cols], of any type.
        x: [cols, pixels], channel-major activations; pixels may be 0 or 1. With ``window`` [channels, height, width],
            and cols is channels * kernel.
        window: how a convolution walks over x.
        out: [rows, pixels], with ``window`` [rows, out height, out width]; of x's type; written and returned; None: a
            new one of the same kind as ``x``. Overlaps nothing else.
        bias: float32 [rows].
        residual: as ``out``, added before the activation; may be ``out`` itself.
        activation: a name from ``ACTIVATIONS``, or (lower, upper) to clamp to.
        arithmetic: what a variant may give up digits for, if the machine is faster at it. "float32": nothing.
            "float16": where x and the weight both are float16, up to 128 entries at a time are multiplied and added in
            float16. "bfloat16": x and the weight are rounded to bfloat16. "int8": where the weight is int8, each pixel
            of x is rounded to 127ths of its greatest magnitude. ``abi.h`` has the bounds.
        pool: threads to share the work; None: the caller's thread alone.
        variant: a name from :func:`variants`; None: the fastest.

    Raises:
        KernelError: a shape, type, stride, device or overlap that is not as above; a gradient is wanted.
        IsaError: the variant is unknown, or cannot run here.
        KernelsUnavailable: there is neither a C library nor numba.
    """
    dimensions = 2 if window is None else 3
    inputs = buffer("x", x, dimensions)
    shape = out_shape(_checked(weight), inputs, window)
    if out is None:
        out = empty_like(x, shape)
    outputs = shaped("out", buffer("out", out, dimensions, packed=window is not None), shape, inputs.type, _REMEDY)
    biases = residuals = None
    if bias is not None:
        biases = shaped("bias", buffer("bias", bias, 1), (weight.rows,), "float32", _REMEDY)
    if residual is not None:
        residuals = buffer("residual", residual, dimensions, packed=window is not None)
        shaped("residual", residuals, shape, inputs.type, _REMEDY)
    refuse_overlap(outputs, {"x": inputs, "bias": biases, "residual": residuals}, in_place=("residual",))
    if arithmetic not in ARITHMETIC:
        remedy = f"use one of {', '.join(ARITHMETIC)}"
        raise KernelError(f"there is no {arithmetic!r}", place="arithmetic", remedy=remedy)
    epilogue = activation_of(activation)
    return Job(out, pool, variant, weight, inputs, window, outputs, biases, residuals, *epilogue, arithmetic)


#: ``bind(weight, x, out=out, ...)`` of :func:`matmul`; every primitive has its own.
bind = matmul.bind


@dataclass(eq=False)
class Job(Call):
    """Checked arguments of one call."""

    primitive: ClassVar[str] = "matmul"
    weight: Weight
    x: Buffer
    window: Window | None
    out: Buffer
    bias: Buffer | None
    residual: Buffer | None
    activation: int
    lower: float
    upper: float
    arithmetic: str

    def fill(self, args: Any) -> object:
        library = load()
        args.weight = as_c(library, self.weight)
        args.type, args.arithmetic = type_number(self.x.type), type_number(self.arithmetic)
        args.x, args.y = address(self.x), address(self.out)
        args.pixels, args.y_stride = self.out.pixels, self.out.stride
        args.activation, args.lower, args.upper = self.activation, self.lower, self.upper
        args.bias = address(self.bias)
        if self.residual is not None:
            args.residual, args.residual_stride = address(self.residual), self.residual.stride
        if self.window is None:
            args.x_stride = self.x.stride
            return None
        window = args.window = library.ffi.new("coppice_window *")
        fill_window(window, self.window, self.x, self.out)
        return window


def _checked(weight: Any) -> Weight:
    if not isinstance(weight, Weight):
        remedy = "build one with Weight.sparse(weight) or Weight.dense(weight), once"
        raise KernelError(f"it is a {type(weight).__name__}", place="weight", remedy=remedy)
    return weight


def out_shape(weight: Weight, x: Buffer, window: Window | None) -> tuple[int, ...]:
    """Of ``out``; refuses an x that does not meet the weight."""
    if window is None:
        shaped("x", x, (weight.cols, x.array.shape[1]), x.type, _REMEDY)
        return weight.rows, x.array.shape[1]
    channels, height, width = x.array.shape
    columns = channels * window.kernel[0] * window.kernel[1]
    if columns != weight.cols:
        fact = f"{channels} channels under {window.kernel} make {columns} columns, the weight has {weight.cols}"
        remedy = "x is [channels, height, width], the weight [rows, channels * kernel]"
        raise KernelError(fact, place="x", remedy=remedy)
    return weight.rows, *window.out(height, width)
