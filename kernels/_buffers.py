"""Arrays and tensors of users as memory that a kernel may be given."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from coppice.kernels._errors import KernelError
from coppice.kernels._types import Array


@dataclass(frozen=True)
class Buffer:
    """An array over the user's memory, and the type of its elements; bfloat16 is held as uint16."""

    array: Array
    type: str

    @property
    def steps(self) -> tuple[int, ...]:
        """Elements between neighbours along each axis, those of a contiguous array where an axis has no two."""
        contiguous = [prod(self.array.shape[axis + 1 :]) for axis in range(self.array.ndim)]
        real = [stride // self.array.itemsize for stride in self.array.strides]
        sizes = self.array.shape
        return tuple(c if sizes[i] < 2 or not self.array.size else real[i] for i, c in enumerate(contiguous))

    @property
    def stride(self) -> int:
        """Elements between rows, pixels being all axes but the first."""
        return self.steps[0]

    @property
    def pixels(self) -> int:
        """Elements of a row."""
        return prod(self.array.shape[1:])

    def same_as(self, other: Buffer) -> bool:
        """Whether both are the same places in memory."""
        return self.array.ctypes.data == other.array.ctypes.data and self.steps == other.steps


def buffer(name: str, value: Any, dimensions: int, *, packed: bool = False) -> Buffer:
    """``value`` without a copy, its last axis contiguous; ``packed``: all axes but the first, as one.

    Raises:
        KernelError: it is no array or tensor on the CPU, of another type or layout, or it wants a gradient.
    """
    torch = sys.modules.get("torch")
    kind = ""
    if torch is not None and isinstance(value, torch.Tensor):
        kind, value = _tensor_array(name, value, torch)
    if not isinstance(value, np.ndarray):
        fact = f"it is a {type(value).__name__}"
        raise KernelError(fact, place=name, remedy="pass a numpy array or a torch CPU tensor")
    if not kind:
        kind = value.dtype.name if value.dtype.isnative else str(value.dtype)
        if kind not in ("float32", "float16"):
            fact = f"it is {value.dtype}, not float32 or float16"
            raise KernelError(fact, place=name, remedy=f"convert it, e.g. {name}.astype(numpy.float32)")
    if value.ndim != dimensions:
        fact = f"it has {value.ndim} dimensions, not {dimensions}"
        raise KernelError(fact, place=name, remedy="reshape it: x is [cols, pixels], bias [rows]")
    if not _fits(value, packed):
        fact = f"strides {value.strides} of a {list(value.shape)} array: rows must be contiguous, apart and aligned"
        raise KernelError(fact, place=name, remedy=f"copy it, e.g. numpy.ascontiguousarray({name})")
    return Buffer(value, kind)


def _fits(value: Array, packed: bool) -> bool:
    """Whether each axis steps over all that the axes after it hold (exactly as much, inside of a packed row)."""
    if not value.size:
        return True
    held = value.itemsize
    for axis in reversed(range(value.ndim)):
        size, stride = value.shape[axis], value.strides[axis]
        exact = axis == value.ndim - 1 or (packed and axis > 0)
        if size > 1 and (stride % value.itemsize or (stride != held if exact else stride < held)):
            return False
        held = held * size if size < 2 or exact else (size - 1) * stride + held
    return bool(value.flags.aligned)


def _tensor_array(name: str, tensor: Any, torch: Any) -> tuple[str, Any]:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        fact = f"it is a {tensor.layout} tensor on {tensor.device}"
        raise KernelError(fact, place=name, remedy="pass a dense tensor on the CPU")
    if tensor.requires_grad and torch.is_grad_enabled():
        remedy = "detach it, or make the call in a torch.autograd.Function with a backward of its own"
        raise KernelError("it wants a gradient, and torch does not see this call", place=name, remedy=remedy)
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in ("float32", "float16", "bfloat16"):
        fact = f"it is {kind}, not float32, float16 or bfloat16"
        raise KernelError(fact, place=name, remedy=f"convert it, e.g. {name}.float()")
    tensor = tensor.detach()
    return kind, (tensor.view(torch.uint16) if kind == "bfloat16" else tensor).numpy()


def empty_like(x: Any, shape: tuple[int, ...], kind: str | None = None) -> Any:
    """A new array of the same kind as ``x``, of its type or of type ``kind``.

    Raises:
        KernelError: numpy has no such type.
    """
    if not isinstance(x, np.ndarray):
        return x.new_empty(shape, dtype=None if kind is None else getattr(sys.modules["torch"], kind))
    if kind == "bfloat16":
        raise KernelError("numpy has no bfloat16", place="type", remedy="pass a torch tensor")
    return np.empty(shape, x.dtype if kind is None else kind)
