"""Weights as bitmasks: a bit for every place of the matrix, the values of the set ones side by side."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._layout import Arrays, Fault, Float, Index, Layout, no_slab, starts_fault, starts_of, stored
from coppice.kernels._types import TYPES

if TYPE_CHECKING:
    from coppice.kernels._convert import Triplets
    from coppice.kernels._weight import Weight

#: Bits of a word of a mask.
WORD = 64


def _arrays(weight: Weight) -> Arrays:
    return {
        "values": (TYPES[weight.type], (None, 1)),
        "starts": (np.uint32, (weight.rows + 1,)),
        "masks": (np.uint64, (weight.rows, ceil(weight.cols / WORD))),
    }


def _bits(weight: Weight) -> NDArray[np.uint8]:
    """[rows, columns up to a whole word], 0 or 1."""
    assert weight.masks is not None
    shape = weight.rows, weight.masks.shape[1] * WORD
    return np.unpackbits(weight.masks.astype("<u8").view(np.uint8).ravel(), bitorder="little").reshape(shape)


def _fault(weight: Weight) -> Fault:
    assert weight.starts is not None
    fault = starts_fault(weight.starts, weight.entries)
    if fault:
        return fault
    bits = _bits(weight)
    if bits[:, weight.cols :].any():
        return "masks", f"row {int(np.argmax(bits[:, weight.cols :].any(axis=1)))} has an entry past the last column"
    wrong = bits.sum(axis=1, dtype=np.int64) != np.diff(weight.starts)
    if wrong.any():
        return "starts", f"row {int(np.argmax(wrong))} has more or fewer entries than its mask has bits"
    return None


def _entries(weight: Weight) -> tuple[Index, Index, Index]:
    row, column = np.nonzero(_bits(weight))
    return row, column, np.arange(len(row))


BITMASK = Layout((1,), _arrays, no_slab, _fault, _entries)


def bitmask(source: Triplets, kind: str, scales: Float | None) -> dict[str, Any]:
    """The arguments of ``Weight`` for a matrix."""
    rows, cols, row, column, value = source
    order = np.lexsort((column, row))
    row, column, value = row[order], column[order], value[order]
    bits = np.zeros((rows, ceil(cols / WORD) * WORD), bool)
    bits[row, column] = True
    masks = np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    held, scales = stored(value[:, None], row[:, None], rows, kind, scales)
    starts = starts_of(np.bincount(row, minlength=rows))
    arrays = {"values": held, "starts": starts, "masks": masks, "scales": scales}
    return {"rows": rows, "cols": cols, "slab": 0, "height": 1, "type": kind} | arrays
