"""Arrays and tensors of users as memory that a kernel may be given."""

from __future__ import annotations

import sys
from math import prod
from typing import Any

import numpy as np

from coppice.kernels._errors import KernelError
from coppice.kernels._types import ACTIVATION_TYPES, Array

#: The types of arrays that kernels take. Not by ``dtype.name``: it takes longer than all other checks.
_NUMPY = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16"}


class Buffer:
    """An array over the user's memory, and where that is.

    Attributes:
        array: the user's memory itself.
        type: of the elements; bfloat16 is held as uint16.
        address: of the first element.
        end: of the byte behind the last element.
        steps: elements between neighbours along each axis, those of a contiguous array where an axis has no two.
    """

    __slots__ = ("address", "array", "end", "steps", "type")

    def __init__(self, array: Array, kind: str) -> None:
        self.array, self.type, self.address = array, kind, array.ctypes.data
        width, held, last = array.itemsize, 1, 0
        steps = []
        for size, stride in zip(reversed(array.shape), reversed(array.strides), strict=True):
            step = stride // width if size > 1 and array.size else held
            steps.append(step)
            held *= size
            last += (size - 1) * step
        self.steps = tuple(reversed(steps))
        self.end = self.address + (last + 1) * width if held else self.address

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
        return self.address == other.address and self.steps == other.steps

    def overlaps(self, other: Buffer) -> bool:
        """Whether they have a byte in common; rows of one may lie between rows of the other."""
        return self.address < other.end and other.address < self.end and np.shares_memory(self.array, other.array)


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
        kind = _NUMPY.get(value.dtype, "")
        if not kind:
            fact = f"it is {value.dtype}, not float32 or float16"
            raise KernelError(fact, place=name, remedy=f"convert it, e.g. {name}.astype(numpy.float32)")
    if value.ndim != dimensions:
        fact = f"it has {value.ndim} dimensions, not {dimensions}"
        raise KernelError(fact, place=name, remedy="reshape it: x is [cols, pixels], bias [rows]")
    flags = value.flags
    if not (flags.c_contiguous and flags.aligned) and not _fits(value, packed):
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
    if not tensor.is_cpu or tensor.layout != torch.strided:
        fact = f"it is a {tensor.layout} tensor on {tensor.device}"
        raise KernelError(fact, place=name, remedy="pass a dense tensor on the CPU")
    if tensor.requires_grad and torch.is_grad_enabled():
        remedy = "detach it, or make the call in a torch.autograd.Function with a backward of its own"
        raise KernelError("it wants a gradient, and torch does not see this call", place=name, remedy=remedy)
    kind = str(tensor.dtype)[len("torch.") :]
    if kind not in ACTIVATION_TYPES:
        fact = f"it is {kind}, not {', '.join(ACTIVATION_TYPES)}"
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
