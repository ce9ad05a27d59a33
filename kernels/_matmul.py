"""``matmul``: weight times activations, or a convolution, with bias, residual and activation in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from coppice.kernels._activations import Activation, activation_of
from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._call import address, bind_c, refuse_overlap, shaped, type_number
from coppice.kernels._code import held_by_c
from coppice.kernels._errors import KernelError
from coppice.kernels._load import load
from coppice.kernels._pool import Pool
from coppice.kernels._types import TYPES
from coppice.kernels._variants import Variant, pick
from coppice.kernels._weight import Weight
from coppice.kernels._window import Window, fill_window

_REMEDY = "x is [cols, pixels], out and residual [rows, pixels] of x's type, bias float32 [rows]"

#: What products and sums may be computed in.
ARITHMETIC = tuple(TYPES)


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
) -> Any:
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
    if out is None:
        out = empty_like(x, _out_shape(_checked(weight), buffer("x", x, 2 if window is None else 3), window))
    bind(weight, x, window=window, out=out, bias=bias, residual=residual, activation=activation, arithmetic=arithmetic,
         pool=pool, variant=variant)()  # fmt: skip
    return out


def bind(
    weight: Weight,
    x: Any,
    *,
    out: Any,
    window: Window | None = None,
    bias: Any = None,
    residual: Any = None,
    activation: Activation = "none",
    arithmetic: str = "float32",
    pool: Pool | None = None,
    variant: str | None = None,
) -> Callable[[], None]:
    """Checks the arguments of :func:`matmul` once and returns the call, to be made many times on the same buffers."""
    dimensions = 2 if window is None else 3
    inputs, outputs = buffer("x", x, dimensions), buffer("out", out, dimensions, packed=window is not None)
    shape = _out_shape(_checked(weight), inputs, window)
    shaped("out", outputs, shape, inputs.type, _REMEDY)
    biases = None
    if bias is not None:
        biases = shaped("bias", buffer("bias", bias, 1), (weight.rows,), "float32", _REMEDY)
    residuals = None
    if residual is not None:
        residuals = buffer("residual", residual, dimensions, packed=window is not None)
        shaped("residual", residuals, shape, inputs.type, _REMEDY)
    refuse_overlap(outputs, {"x": inputs, "bias": biases, "residual": residuals}, in_place=("residual",))
    if arithmetic not in ARITHMETIC:
        remedy = f"use one of {', '.join(ARITHMETIC)}"
        raise KernelError(f"there is no {arithmetic!r}", place="arithmetic", remedy=remedy)
    job = Job(weight, inputs, window, outputs, biases, residuals, *activation_of(activation), arithmetic)
    chosen = pick("matmul", variant)
    if chosen.index < 0:
        return _bind_numba(job)
    return _bind_c(chosen, job, pool)


@dataclass(frozen=True)
class Job:
    """Checked arguments of one call."""

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


def _bind_c(variant: Variant, job: Job, pool: Pool | None) -> Callable[[], None]:
    library = load()
    ffi, c = library.ffi, library.c
    args = ffi.new("coppice_matmul_args *")
    held_by_c(library, job.weight, args.weight)
    args.type = type_number(job.x.type)
    args.x, args.y = address(job.x), address(job.out)
    args.pixels, args.y_stride = job.out.pixels, job.out.stride
    window = None
    if job.window is None:
        args.x_stride = job.x.stride
    else:
        window = args.window = ffi.new("coppice_window *")
        fill_window(window, job.window, job.x, job.out)
    args.bias = address(job.bias)
    if job.residual is not None:
        args.residual, args.residual_stride = address(job.residual), job.residual.stride
    args.activation, args.lower, args.upper = job.activation, job.lower, job.upper
    args.arithmetic = type_number(job.arithmetic)
    return bind_c(variant, args, c.coppice_matmul_scratch(args), pool, job, window)


def _bind_numba(job: Job) -> Callable[[], None]:
    from coppice.kernels.numba.matmul import run

    if not job.weight.slab:
        job = replace(job, weight=Weight.sparse(job.weight, type=job.weight.type))
    return lambda: run(job)


def _checked(weight: Any) -> Weight:
    if not isinstance(weight, Weight):
        remedy = "build one with Weight.sparse(weight) or Weight.dense(weight), once"
        raise KernelError(f"it is a {type(weight).__name__}", place="weight", remedy=remedy)
    return weight


def _out_shape(weight: Weight, x: Buffer, window: Window | None) -> tuple[int, ...]:
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
