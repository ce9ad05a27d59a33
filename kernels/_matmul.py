"""``matmul``: weight times activations, or a convolution, with bias, residual and activation in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

import numpy as np

from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._errors import KernelError
from coppice.kernels._load import load
from coppice.kernels._pool import Pool
from coppice.kernels._types import TYPES
from coppice.kernels._variants import Variant, pick
from coppice.kernels._weight import Weight

#: Activations: the number that ``abi.h`` gives them, and the bounds that their result is clamped to.
ACTIVATIONS: dict[str, tuple[int, float, float]] = {
    "none": (0, -inf, inf),
    "relu": (0, 0.0, inf),
    "relu6": (0, 0.0, 6.0),
    "hardswish": (1, -inf, inf),
    "sigmoid": (2, -inf, inf),
    "silu": (3, -inf, inf),
    "gelu": (4, -inf, inf),
}

Activation = str | tuple[float, float]

#: What products and sums may be computed in.
ARITHMETIC = ("float32", "float16")


@dataclass(frozen=True)
class Window:
    """How a convolution walks over its input, each as (vertical, horizontal).

    The columns are those of ``weight.flatten(1)`` of a torch convolution: (channel, ky, kx). ``padding`` is the
    number of zeros before the first row and column; there are as many after the last, unless ``after`` says otherwise.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    after: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            if not all(least <= n < 1 << 31 for n in getattr(self, name)):
                remedy = f"give two integers from {least} on"
                raise KernelError(f"{getattr(self, name)}", place=f"Window.{name}", remedy=remedy)

    def out(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the result for so many of the input; 0 where the kernel does not fit."""
        after = self.padding if self.after is None else self.after
        sizes = []
        for axis, size in enumerate((height, width)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            room = size + self.padding[axis] + after[axis] - reach
            sizes.append(room // self.stride[axis] + 1 if room >= 0 else 0)
        return sizes[0], sizes[1]


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
        arithmetic: "float32", or "float16" to allow that too: where x and the weight both are float16, up to 128
            entries at a time may then be multiplied and added in float16, if the machine can; these sums are added in
            float32. With n entries in a row and m the sum of the magnitudes of their products, the sum may be off by
            min(n, 128) * 2^-10 * m + n * 2^-24 more; past 65504 it is infinite or NaN.
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
    _shaped("out", outputs, shape, inputs.type)
    biases = None if bias is None else _shaped("bias", buffer("bias", bias, 1), (weight.rows,), "float32")
    residuals = None
    if residual is not None:
        residuals = buffer("residual", residual, dimensions, packed=window is not None)
        _shaped("residual", residuals, shape, inputs.type)
    if not outputs.array.flags.writeable:
        raise KernelError("it is read-only", place="out", remedy="pass a writable array, or none")
    for name, other in (("x", inputs), ("bias", biases), ("residual", residuals)):
        same = name == "residual" and other is not None and other.same_as(outputs)
        if other is not None and not same and np.shares_memory(outputs.array, other.array):
            raise KernelError(f"it overlaps {name}", place="out", remedy="pass an array of its own, or none")
    if arithmetic not in ARITHMETIC:
        remedy = f"use one of {', '.join(ARITHMETIC)}"
        raise KernelError(f"there is no {arithmetic!r}", place="arithmetic", remedy=remedy)
    job = Job(weight, inputs, window, outputs, biases, residuals, *_activation(activation), arithmetic)
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
    weight = job.weight

    def address(array: Any) -> Any:
        return ffi.NULL if array is None else ffi.cast("void *", array.ctypes.data)

    args = ffi.new("coppice_matmul_args *")
    held = args.weight
    held.layout = c.COPPICE_DENSE if weight.starts is None else c.COPPICE_SPARSE
    held.type = list(TYPES).index(weight.type)
    held.rows, held.cols, held.slab, held.height = weight.rows, weight.cols, weight.slab, weight.height
    held.entries = weight.entries
    held.starts, held.columns, held.values = address(weight.starts), address(weight.columns), address(weight.values)
    held.scales = address(weight.scales)
    args.type = list(TYPES).index(job.x.type)
    args.x, args.y = address(job.x.array), address(job.out.array)
    args.pixels, args.y_stride = job.out.pixels, job.out.stride
    window = None if job.window is None else _window(ffi, job.window, job.x, job.out)
    if window is None:
        args.x_stride = job.x.stride
    else:
        args.window = window
    args.bias = ffi.NULL if job.bias is None else address(job.bias.array)
    if job.residual is not None:
        args.residual, args.residual_stride = address(job.residual.array), job.residual.stride
    args.activation, args.lower, args.upper = job.activation, job.lower, job.upper
    args.arithmetic = list(TYPES).index(job.arithmetic)
    threads = 1 if pool is None else pool.threads
    scratch = np.empty(max(0, c.coppice_matmul_scratch(args)) * threads, np.uint8)
    args.work.shares, args.work.scratch, args.work.scratch_bytes = 1, address(scratch), scratch.nbytes
    buffers = (job, scratch, window)
    run, index = c.coppice_variant_run, variant.index

    def call(_alive: object = buffers) -> None:  # args holds bare addresses
        status = run(index, args) if pool is None else pool.run(index, args)
        if status:
            remedy = "report this: the arguments should have been refused earlier"
            raise KernelError(library.status_text(status), place=f"matmul {variant.name}", remedy=remedy)

    return call


def _window(ffi: Any, window: Window, x: Buffer, out: Buffer) -> Any:
    channels, height, width = x.array.shape
    held = ffi.new("coppice_window *")
    held.channels, held.height, held.width = channels, height, width
    held.row_stride = max(width, x.steps[1])
    held.channel_stride = max(x.steps[0], max(0, height - 1) * held.row_stride + width)
    held.kernel_y, held.kernel_x = window.kernel
    held.stride_y, held.stride_x = window.stride
    held.dilation_y, held.dilation_x = window.dilation
    held.pad_y, held.pad_x = window.padding
    held.out_height, held.out_width = out.array.shape[1:]
    return held


def _bind_numba(job: Job) -> Callable[[], None]:
    from coppice.kernels.numba.matmul import run

    return lambda: run(job)


def _checked(weight: Any) -> Weight:
    if not isinstance(weight, Weight):
        remedy = "build one with Weight.sparse(weight) or Weight.dense(weight), once"
        raise KernelError(f"it is a {type(weight).__name__}", place="weight", remedy=remedy)
    return weight


def _out_shape(weight: Weight, x: Buffer, window: Window | None) -> tuple[int, ...]:
    """Of ``out``; refuses an x that does not meet the weight."""
    if window is None:
        _shaped("x", x, (weight.cols, x.array.shape[1]), x.type)
        return weight.rows, x.array.shape[1]
    channels, height, width = x.array.shape
    columns = channels * window.kernel[0] * window.kernel[1]
    if columns != weight.cols:
        fact = f"{channels} channels under {window.kernel} make {columns} columns, the weight has {weight.cols}"
        remedy = "x is [channels, height, width], the weight [rows, channels * kernel]"
        raise KernelError(fact, place="x", remedy=remedy)
    return weight.rows, *window.out(height, width)


def _shaped(name: str, held: Buffer, shape: tuple[int, ...], kind: str) -> Buffer:
    if held.array.shape != shape or held.type != kind:
        fact = f"it is {held.type} {list(held.array.shape)}, the other arguments ask for {kind} {list(shape)}"
        remedy = "x is [cols, pixels], out and residual [rows, pixels] of x's type, bias float32 [rows]"
        raise KernelError(fact, place=name, remedy=remedy)
    return held


def _activation(activation: Activation) -> tuple[int, float, float]:
    if isinstance(activation, str):
        if activation in ACTIVATIONS:
            return ACTIVATIONS[activation]
        remedy = f"use one of {', '.join(ACTIVATIONS)}, or (lower, upper)"
        raise KernelError(f"there is no {activation!r}", place="activation", remedy=remedy)
    lower, upper = activation
    if isnan(lower) or isnan(upper) or lower > upper:
        fact = f"{lower} .. {upper} is not a range"
        raise KernelError(fact, place="activation", remedy="give the lower bound first")
    return 0, lower, upper
