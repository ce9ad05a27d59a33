"""Element types, as numpy holds them: bfloat16, which numpy lacks, as its bits in uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: The types of weights, in the order of coppice_type in ``abi.h``; those of activations are all but the last.
TYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8}
ACTIVATION_TYPES = ("float32", "float16", "bfloat16")


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers whose bfloat16 bits these are."""
    wide: NDArray[np.float32] = (bits.astype(np.uint32) << 16).view(np.float32)
    return wide


def widened(array: Array, kind: str) -> NDArray[np.float32]:
    """Elements of type ``kind`` as float32; float32 itself, uncopied."""
    return from_bfloat16(array) if kind == "bfloat16" else array.astype(np.float32, copy=False)


def narrowed(values: NDArray[np.float32], kind: str) -> Array:
    """float32 rounded to a floating-point type, ties to even; too large becomes infinite."""
    if kind == "bfloat16":
        return to_bfloat16(values)
    with np.errstate(over="ignore"):
        return values.astype(TYPES[kind], copy=False)
