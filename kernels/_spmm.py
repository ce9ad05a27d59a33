"""``spmm``: sparse weight times dense activations, with bias, residual and activation in the same pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import inf, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._csr import CSR
from coppice.kernels._errors import KernelError
from coppice.kernels._load import load
from coppice.kernels._variants import Variant, pick

#: Activations as the bounds that a result is clamped to.
ACTIVATIONS: dict[str, tuple[float, float]] = {"none": (-inf, inf), "relu": (0.0, inf), "relu6": (0.0, 6.0)}

Array = NDArray[np.float32]


def spmm(
    weight: CSR,
    x: Any,
    *,
    out: Any = None,
    bias: Any = None,
    residual: Any = None,
    activation: str | tuple[float, float] = "none",
    variant: str | None = None,
) -> Any:
    """``activation(weight @ x + bias[:, None] + residual)``, in fp32, on one thread.

    Arrays are float32 numpy arrays or torch CPU tensors, used in place without a copy; torch is not imported unless one
    is given. Rows are contiguous along pixels but may stand apart (a slice of a wider array), at any 4-byte address.
    NaN and infinities propagate; what has no entry in ``weight`` takes no part (0 * inf never arises from it).

    Args:
        weight: [rows, cols].
        x: [cols, pixels], channel-major activations; pixels may be 0 or 1.
        out: [rows, pixels], written and returned; None: a new one of the same kind as ``x``. Overlaps nothing else.
        bias: [rows].
        residual: [rows, pixels], added before the activation; may be ``out`` itself.
        activation: "none", "relu", "relu6", or (lower, upper) to clamp to.
        variant: a name from :func:`variants`; None: the fastest.

    Raises:
        KernelError: a shape, dtype, stride, device or overlap that is not as above; a gradient is wanted.
        IsaError: the variant is unknown, or cannot run here.
        KernelsUnavailable: there is neither a C library nor numba.
    """
    if out is None:
        out = _empty_like(x, (_matrix(weight).rows, _array("x", x, 2).shape[1]))
    bind(weight, x, out=out, bias=bias, residual=residual, activation=activation, variant=variant)()
    return out


def bind(
    weight: CSR,
    x: Any,
    *,
    out: Any,
    bias: Any = None,
    residual: Any = None,
    activation: str | tuple[float, float] = "none",
    variant: str | None = None,
) -> Callable[[], None]:
    """Checks the arguments of :func:`spmm` once and returns the call, to be made many times on the same buffers."""
    inputs, outputs = _array("x", x, 2), _array("out", out, 2)
    _shaped("x", inputs, (_matrix(weight).cols, inputs.shape[1]))
    _shaped("out", outputs, (weight.rows, inputs.shape[1]))
    biases = None if bias is None else _shaped("bias", _array("bias", bias, 1), (weight.rows,))
    residuals = None if residual is None else _shaped("residual", _array("residual", residual, 2), outputs.shape)
    if not outputs.flags.writeable:
        raise KernelError("it is read-only", place="out", remedy="pass a writable array, or none")
    for name, other in (("x", inputs), ("bias", biases), ("residual", residuals)):
        same = name == "residual" and other is not None and _same(other, outputs)
        if other is not None and not same and np.shares_memory(outputs, other):
            raise KernelError(f"it overlaps {name}", place="out", remedy="pass an array of its own, or none")
    make = _bind_numba if (chosen := pick("spmm_f32", variant)).index < 0 else _bind_c
    return make(chosen, weight, inputs, outputs, biases, residuals, _bounds(activation))


def _bind_c(
    variant: Variant,
    weight: CSR,
    x: Array,
    out: Array,
    bias: Array | None,
    residual: Array | None,
    bounds: tuple[float, float],
) -> Callable[[], None]:
    library = load()
    ffi = library.ffi

    def address(kind: str, array: NDArray[Any] | None) -> Any:
        return ffi.NULL if array is None else ffi.cast(kind, array.ctypes.data)

    args = ffi.new("coppice_spmm_f32_args *")
    args.weight.layout = library.c.COPPICE_SLAB_CSR
    args.weight.rows, args.weight.cols, args.weight.slab = weight.rows, weight.cols, weight.slab
    args.weight.entries = weight.entries
    args.weight.starts = address("uint32_t *", weight.starts)
    args.weight.columns = address("uint16_t *", weight.columns)
    args.weight.values = address("float *", weight.values)
    args.pixels = x.shape[1]
    args.x, args.x_stride = address("float *", x), _stride(x)
    args.y, args.y_stride = address("float *", out), _stride(out)
    args.bias = address("float *", bias)
    if residual is not None:
        args.residual, args.residual_stride = address("float *", residual), _stride(residual)
    args.lower, args.upper = bounds
    scratch = np.empty(max(0, library.c.coppice_spmm_f32_scratch(args)), np.uint8)
    args.scratch, args.scratch_bytes = address("void *", scratch), scratch.nbytes
    buffers = (weight, x, out, bias, residual, scratch)

    def call(_alive: object = buffers) -> None:  # args holds bare addresses
        status = library.c.coppice_variant_run(variant.index, args)
        if status != library.c.COPPICE_OK:
            remedy = "report this: the arguments should have been refused earlier"
            raise KernelError(library.status_text(status), place=f"spmm {variant.name}", remedy=remedy)

    return call


def _bind_numba(
    variant: Variant,
    weight: CSR,
    x: Array,
    out: Array,
    bias: Array | None,
    residual: Array | None,
    bounds: tuple[float, float],
) -> Callable[[], None]:
    from coppice.kernels.numba.spmm import spmm_f32

    return lambda: spmm_f32(weight, x, out, bias, residual, bounds, (_stride(x), _stride(out)))


def _matrix(weight: Any) -> CSR:
    if not isinstance(weight, CSR):
        fact = f"it is a {type(weight).__name__}"
        raise KernelError(fact, place="weight", remedy="build one with CSR.of(weight), once")
    return weight


def _array(name: str, value: Any, dimensions: int) -> Array:
    """``value`` as a float32 array over the same memory, its rows contiguous."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = _tensor_array(name, value, torch)
    if not isinstance(value, np.ndarray):
        fact = f"it is a {type(value).__name__}"
        raise KernelError(fact, place=name, remedy="pass a numpy array or a torch CPU tensor")
    if value.dtype != np.float32 or not value.dtype.isnative:
        fact = f"it is {value.dtype}, not float32"
        raise KernelError(fact, place=name, remedy=f"convert it, e.g. {name}.astype(numpy.float32)")
    if value.ndim != dimensions:
        fact = f"it has {value.ndim} dimensions, not {dimensions}"
        raise KernelError(fact, place=name, remedy="reshape it: x is [cols, pixels], bias [rows]")
    contiguous = value.shape[-1] < 2 or value.strides[-1] == value.itemsize
    if dimensions == 1 or value.shape[0] < 2:
        apart = True
    else:
        apart = value.strides[0] % value.itemsize == 0 and value.strides[0] >= value.shape[1] * value.itemsize
    if value.size and not (contiguous and apart and value.flags.aligned):
        fact = f"strides {value.strides} of a {list(value.shape)} array: rows must be contiguous, apart and aligned"
        raise KernelError(fact, place=name, remedy=f"copy it, e.g. numpy.ascontiguousarray({name})")
    return value


def _tensor_array(name: str, tensor: Any, torch: Any) -> Any:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        fact = f"it is a {tensor.layout} tensor on {tensor.device}"
        raise KernelError(fact, place=name, remedy="pass a dense tensor on the CPU")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise KernelError("it wants a gradient, which these kernels do not compute", place=name, remedy="detach it")
    if tensor.dtype != torch.float32:
        fact = f"it is {str(tensor.dtype).removeprefix('torch.')}, not float32"
        raise KernelError(fact, place=name, remedy=f"convert it, e.g. {name}.float()")
    return tensor.detach().numpy()


def _empty_like(x: Any, shape: tuple[int, int]) -> Any:
    if isinstance(x, np.ndarray):
        return np.empty(shape, np.float32)
    return x.new_empty(shape)


def _shaped(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape != shape:
        fact = f"its shape is {list(array.shape)}, the other arguments ask for {list(shape)}"
        raise KernelError(fact, place=name, remedy="x is [cols, pixels], out and residual [rows, pixels], bias [rows]")
    return array


def _bounds(activation: str | tuple[float, float]) -> tuple[float, float]:
    if isinstance(activation, str):
        if activation in ACTIVATIONS:
            return ACTIVATIONS[activation]
        remedy = f"use one of {', '.join(ACTIVATIONS)}, or (lower, upper)"
        raise KernelError(f"there is no {activation!r}", place="activation", remedy=remedy)
    lower, upper = activation
    if isnan(lower) or isnan(upper) or lower > upper:
        fact = f"{lower} .. {upper} is not a range"
        raise KernelError(fact, place="activation", remedy="give the lower bound first")
    return lower, upper


def _stride(array: Array) -> int:
    """Elements between rows; the row's own length where there is only one."""
    return array.strides[0] // array.itemsize if array.shape[0] > 1 and array.size else array.shape[1]


def _same(a: Array, b: Array) -> bool:
    return a.ctypes.data == b.ctypes.data and _stride(a) == _stride(b)
