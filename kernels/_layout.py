"""What a layout of weights is to ``Weight``: its arrays, what may be wrong with them, and where its entries are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._errors import KernelError
from coppice.kernels._types import TYPES, Array, narrowed

if TYPE_CHECKING:
    from coppice.kernels._weight import Weight

Float = NDArray[np.float32]
Index = NDArray[np.int64]

#: (field, fact) of what is wrong.
Fault = tuple[str, str] | None

#: Element type and shape by field; None for any number.
Arrays = Mapping[str, tuple[Any, tuple[int | None, ...]]]


@dataclass(frozen=True)
class Layout:
    """One layout of ``coppice_weight`` in ``abi.h``.

    Attributes:
        heights: rows of a band that it may have.
        arrays: what it has beside ``scales``, of a weight whose sizes are right.
        sizes: what is wrong with its sizes; looked at first.
        fault: what is wrong with its arrays, their types and shapes being right.
        entries: (row, column, place in the flat values) of every entry of the matrix, in any order.
        types: of values that it may have.
        optional: arrays that may be left out.
    """

    heights: tuple[int, ...]
    arrays: Callable[[Weight], Arrays]
    sizes: Callable[[Weight], Fault]
    fault: Callable[[Weight], Fault]
    entries: Callable[[Weight], tuple[Index, Index, Index]]
    types: tuple[str, ...] = tuple(TYPES)
    optional: tuple[str, ...] = ()


def no_slab(weight: Weight) -> Fault:
    """Of a layout that has no slabs."""
    return None if weight.slab == 0 else ("slab", f"{weight.slab} is not 0: this layout has no slabs")


def starts_fault(starts: NDArray[np.uint32], entries: int) -> Fault:
    """Unless they rise from zero to the number of entries."""
    if starts[0] != 0 or starts[-1] != entries:
        return "starts", f"they run from {starts[0]} to {starts[-1]}, not from 0 to {entries}"
    if np.any(starts[1:] < starts[:-1]):
        return "starts", f"they fall after position {int(np.argmax(starts[1:] < starts[:-1]))}"
    return None


def starts_of(counts: Index) -> NDArray[np.uint32]:
    """Where each of some lists begins, and the last one ends.

    Raises:
        KernelError: there are more entries than 32 bits count.
    """
    ends = np.cumsum(counts, dtype=np.int64)
    if len(ends) and ends[-1] > np.iinfo(np.uint32).max:
        raise KernelError("2^32 entries or more", place="matrix", remedy="split the matrix by rows")
    return np.concatenate([np.zeros(1, np.int64), ends]).astype(np.uint32)


def stored(
    values: Float, rows_of: Index, rows: int, kind: str, scales: Float | None = None
) -> tuple[Array, Float | None]:
    """Values of any shape as type ``kind``, and scales where it is int8: the largest magnitude of a row over 127, or
    ``scales``. ``rows_of``, of the same shape, says which row each value belongs to."""
    if kind not in TYPES:
        raise KernelError(f"there is no {kind!r}", place="type", remedy=f"use one of {', '.join(TYPES)}")
    if kind != "int8":
        return narrowed(values, kind), None
    if not np.isfinite(values).all():
        raise KernelError("int8 holds no NaN and no infinity", place="matrix", remedy="take float16 or mend the values")
    largest = np.zeros(max(rows, int(rows_of.max(initial=-1)) + 1), np.float32)
    np.maximum.at(largest, rows_of.ravel(), np.abs(values).ravel())
    own = np.where(largest > 0, largest / np.float32(127), 1).astype(np.float32)
    if scales is not None:
        own[: len(scales)] = scales
    return np.rint(values / own[rows_of]).astype(np.int8), own[:rows]
