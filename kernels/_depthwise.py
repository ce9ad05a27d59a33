"""``depthwise``: the convolution of each channel by kernels of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._activations import Activation, activation_of
from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._call import Call, address, primitive, refuse_overlap, shaped, type_number
from coppice.kernels._errors import KernelError
from coppice.kernels._pool import Pool
from coppice.kernels._window import Window, fill_window

_REMEDY = "x is [channels, height, width], weight and bias float32 [rows, kernel] and [rows], out of x's type"


@primitive
def depthwise(
    weight: Any,
    x: Any,
    *,
    window: Window | None = None,
    sources: Any = None,
    out: Any = None,
    bias: Any = None,
    activation: Activation = "none",
    pool: Pool | None = None,
    variant: str | None = None,
) -> Job:
    """Row r is ``activation(channel sources[r] of x convolved by weight[r] + bias[r])``.

    Arrays are used in place as by :func:`matmul`. Sums are float32. NaN and infinities propagate.

    Args:
        weight: float32 [rows, kernel height, kernel width], contiguous.
        x: [channels, height, width], float32, float16 or bfloat16.
        window: how the kernel walks over x; None: step by step, without padding.
        sources: a channel of x for each row, integers [rows]; None: rows are channels, or a multiple of them
            (``groups=channels`` of torch, with the depth multiplier rows / channels).
        out: [rows, out height, out width], of x's type; written and returned; None: a new one of the same kind as
            ``x``. Overlaps nothing else.
        bias: float32 [rows].
        activation: a name from ``ACTIVATIONS``, or (lower, upper) to clamp to.
        pool: threads to share the work; None: the caller's thread alone.
        variant: a name from :func:`variants`; None: the fastest.

    Raises:
        KernelError: a shape, type, stride, device or overlap that is not as above; a gradient is wanted.
        IsaError: the variant is unknown, or cannot run here.
        KernelsUnavailable: there is neither a C library nor numba.
    """
    inputs, weights = buffer("x", x, 3), buffer("weight", weight, 3, packed=True)
    high, wide = weights.array.shape[1:]
    if window is None:
        window = Window((high, wide))
    if window.kernel != (high, wide):
        fact = f"it holds kernels of {high} x {wide}, the window is {window.kernel[0]} x {window.kernel[1]}"
        raise KernelError(fact, place="weight", remedy=_REMEDY)
    rows = weights.array.shape[0]
    shaped("weight", weights, (rows, high, wide), "float32", _REMEDY)
    if rows > 1 and weights.array.size and weights.stride != high * wide:
        fact = f"strides {weights.array.strides} of a {list(weights.array.shape)} array: kernels must follow each other"
        raise KernelError(fact, place="weight", remedy="copy it, e.g. numpy.ascontiguousarray(weight)")
    shape = (rows, *window.out(*inputs.array.shape[1:]))
    if out is None:
        out = empty_like(x, shape)
    outputs = shaped("out", buffer("out", out, 3, packed=True), shape, inputs.type, _REMEDY)
    biases = None if bias is None else shaped("bias", buffer("bias", bias, 1), (rows,), "float32", _REMEDY)
    refuse_overlap(outputs, {"x": inputs, "weight": weights, "bias": biases})
    places = _sources(sources, rows, inputs.array.shape[0])
    return Job(out, pool, variant, weights, inputs, window, places, outputs, biases, *activation_of(activation))


@dataclass(eq=False)
class Job(Call):
    """Checked arguments of one call."""

    primitive: ClassVar[str] = "depthwise"
    weight: Buffer
    x: Buffer
    window: Window
    sources: NDArray[np.int32]
    out: Buffer
    bias: Buffer | None
    activation: int
    lower: float
    upper: float

    def fill(self, args: Any) -> None:
        fill_window(args.window, self.window, self.x, self.out)
        args.type, args.rows = type_number(self.x.type), len(self.sources)
        args.sources, args.weight, args.bias = address(self.sources), address(self.weight), address(self.bias)
        args.x, args.y, args.y_stride = address(self.x), address(self.out), self.out.stride
        args.activation, args.lower, args.upper = self.activation, self.lower, self.upper


def _sources(sources: Any, rows: int, channels: int) -> NDArray[np.int32]:
    if sources is None:
        if rows != channels and (not channels or rows % channels):
            fact = f"{rows} kernels for {channels} channels of x"
            raise KernelError(fact, place="weight", remedy="give as many, or a multiple, or say which by sources")
        return np.arange(rows, dtype=np.int32) // np.int32(max(1, rows // max(1, channels)))
    places = np.asarray(sources)
    if places.shape != (rows,) or (rows and places.dtype.kind not in "iu"):
        fact = f"it is {places.dtype} {list(places.shape)}, not integers {[rows]}"
        raise KernelError(fact, place="sources", remedy="give one channel of x for each kernel")
    if rows and not (places.min() >= 0 and places.max() < channels):
        fact = f"{places.min()} .. {places.max()}, but x has the channels 0 .. {channels - 1}"
        raise KernelError(fact, place="sources", remedy="give one channel of x for each kernel")
    return np.ascontiguousarray(places, np.int32)
