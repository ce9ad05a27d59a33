"""``weight_gradient``: what a weight and a bias have to change by, from the gradient of the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._call import Call, address, primitive, refuse_overlap, shaped, type_number
from coppice.kernels._code import as_c
from coppice.kernels._errors import KernelError
from coppice.kernels._load import load
from coppice.kernels._pool import Pool
from coppice.kernels._weight import Weight
from coppice.kernels._window import Window, fill_window

_REMEDY = "dy is [rows, pixels], x [cols, pixels] of dy's type, out float32 [entries, height], bias float32 [rows]"


@primitive
def weight_gradient(
    weight: Weight | None,
    dy: Any,
    x: Any,
    *,
    window: Window | None = None,
    out: Any = None,
    bias: Any = None,
    accumulate: bool = False,
    pool: Pool | None = None,
    variant: str | None = None,
) -> Job:
    """The gradient of ``weight`` where that of ``matmul(weight, x, window=window)`` is ``dy``.

    It has a value for each value of the weight, in the same places: ``dy[row] @ x[column]``. What has no entry has no
    gradient. It is that of the weight itself, whatever its scales and the rounding of its values. Arrays are used in
    place as by :func:`matmul`. Sums are float32, and so is the result: float16 gradients that are scaled up against
    underflow come out scaled up. NaN and infinities propagate.

    Args:
        weight: [rows, cols], of which only the places of its entries matter; None: a plain matrix.
        dy: [rows, pixels], with ``window`` [rows, out height, out width].
        x: [cols, pixels], with ``window`` [channels, height, width]; of dy's type.
        window: how the convolution walks over x.
        out: float32 [entries, height] as ``weight.values``, for None [rows, cols]; contiguous; written and returned;
            None: a new one of the same kind as ``dy``. Overlaps nothing else.
        bias: float32 [rows], where the gradient of the bias goes: the sum of ``dy`` along pixels; None: nowhere.
        accumulate: add to what ``out`` and ``bias`` hold, as for image after image of a batch.
        pool: threads to share the work; None: the caller's thread alone.
        variant: a name from :func:`variants`; None: the fastest.

    Raises:
        KernelError: a shape, type, stride, device or overlap that is not as above; accumulate without ``out``.
        IsaError: the variant is unknown, or cannot run here.
        KernelsUnavailable: there is neither a C library nor numba.
    """
    dimensions = 2 if window is None else 3
    results, inputs = buffer("dy", dy, dimensions, packed=window is not None), buffer("x", x, dimensions)
    rows, cols = _sizes(weight, results, inputs, window)
    shape = (rows, cols) if weight is None else weight.values.shape
    if out is None:
        if accumulate:
            raise KernelError("there is nothing to add to", place="accumulate", remedy="pass the sums so far as out")
        out = empty_like(dy, shape, "float32")
    outputs = shaped("out", buffer("out", out, 2), shape, "float32", _REMEDY)
    if outputs.array.size and outputs.stride != shape[1]:
        fact = f"strides {outputs.array.strides} of a {list(shape)} array: rows must follow each other"
        raise KernelError(fact, place="out", remedy="pass a contiguous array, or none")
    biases = None if bias is None else shaped("bias", buffer("bias", bias, 1), (rows,), "float32", _REMEDY)
    refuse_overlap(outputs, {"dy": results, "x": inputs, "bias": biases})
    if biases is not None:
        refuse_overlap(biases, {"dy": results, "x": inputs}, place="bias")
    return Job(out, pool, variant, weight, results, inputs, window, outputs, biases, accumulate)


@dataclass(eq=False)
class Job(Call):
    """Checked arguments of one call."""

    primitive: ClassVar[str] = "weight_gradient"
    weight: Weight | None
    dy: Buffer
    x: Buffer
    window: Window | None
    out: Buffer
    bias: Buffer | None
    accumulate: bool

    def fill(self, args: Any) -> object:
        library = load()
        if self.weight is None:
            rows, cols = self.out.array.shape
            weight = args.weight
            weight.layout, weight.rows, weight.cols, weight.height = library.c.COPPICE_DENSE, rows, cols, 1
            weight.slab, weight.entries = max(1, cols), rows * cols
        else:
            args.weight = as_c(library, self.weight)
        args.type, args.accumulate, args.pixels = type_number(self.x.type), self.accumulate, self.dy.pixels
        args.dy, args.dy_stride, args.x = address(self.dy), self.dy.stride, address(self.x)
        args.gradient, args.bias = address(self.out), address(self.bias)
        if self.window is None:
            args.x_stride = self.x.stride
            return None
        window = args.window = library.ffi.new("coppice_window *")
        fill_window(window, self.window, self.x, self.dy)
        return window


def _sizes(weight: Weight | None, dy: Buffer, x: Buffer, window: Window | None) -> tuple[int, int]:
    """Rows and columns of the weight; refuses a dy that x, or a weight that either, does not meet."""
    rows, cols = dy.array.shape[0], x.array.shape[0]
    if window is None:
        shaped("x", x, (cols, dy.array.shape[1]), dy.type, _REMEDY)
    else:
        cols *= window.kernel[0] * window.kernel[1]
        shaped("dy", dy, (rows, *window.out(*x.array.shape[1:])), x.type, _REMEDY)
    if weight is not None and not isinstance(weight, Weight):
        remedy = "pass the Weight of the product, or None for a plain matrix"
        raise KernelError(f"it is a {type(weight).__name__}", place="weight", remedy=remedy)
    if weight is not None and not weight.slab:
        fact = f"its layout is {weight.layout}, whose values have an order of their own"
        raise KernelError(fact, place="weight", remedy="train Weight.sparse(...) and convert what comes of it")
    if weight is not None and (weight.rows, weight.cols) != (rows, cols):
        fact = f"it is {weight.rows} x {weight.cols}, dy and x ask for {rows} x {cols}"
        raise KernelError(fact, place="weight", remedy=_REMEDY)
    return rows, cols
