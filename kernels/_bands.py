"""Dense and sparse weights: bands of rows, slabs of columns, an entry a column of a band."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from coppice.kernels._errors import KernelError
from coppice.kernels._layout import Arrays, Fault, Float, Index, Layout, starts_fault, starts_of, stored
from coppice.kernels._types import TYPES

if TYPE_CHECKING:
    from coppice.kernels._convert import Triplets
    from coppice.kernels._weight import Weight

#: Columns are stored in 16 bits, relative to their slab.
SLAB_MAX = 1 << 16

#: Rows that a band may have; 1 is for sparse weights alone.
HEIGHTS = (1, 4, 8, 16)


def _dense_arrays(weight: Weight) -> Arrays:
    return {"values": (TYPES[weight.type], (None, weight.height))}


def _sparse_arrays(weight: Weight) -> Arrays:
    lists = weight.slabs * weight.bands
    return {**_dense_arrays(weight), "starts": (np.uint32, (lists + 1,)), "columns": (np.uint16, (len(weight.values),))}


def _sizes(weight: Weight) -> Fault:
    return None if 1 <= weight.slab <= SLAB_MAX else ("slab", f"{weight.slab} is not in 1 .. {SLAB_MAX}")


def _dense_fault(weight: Weight) -> Fault:
    wanted = weight.bands * weight.cols
    return None if weight.entries == wanted else ("values", f"{weight.entries} entries, a dense weight has {wanted}")


def _sparse_fault(weight: Weight) -> Fault:
    assert weight.starts is not None
    assert weight.columns is not None
    fault = starts_fault(weight.starts, weight.entries)
    if fault:
        return fault
    owner = np.repeat(np.arange(weight.slabs * weight.bands), np.diff(weight.starts))
    width = np.minimum(weight.slab, weight.cols - owner // max(weight.bands, 1) * weight.slab)
    if np.any(weight.columns >= width):
        return "columns", f"entry {int(np.argmax(weight.columns >= width))} lies outside its slab"
    repeats = (owner[1:] == owner[:-1]) & (weight.columns[1:] <= weight.columns[:-1])
    if np.any(repeats):
        return "columns", f"entry {int(np.argmax(repeats)) + 1} does not lie after the one before it in its band"
    return None


def places(weight: Weight) -> tuple[Index, Index]:
    """(band, column) of every entry, in order."""
    if not weight.entries:  # nor rows or columns, perhaps, but two thousand million of the other
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    bands = max(weight.bands, 1)
    if weight.starts is None or weight.columns is None:
        widths = [min(weight.slab, weight.cols - first) for first in range(0, weight.cols, weight.slab)]
        column = [np.tile(np.arange(width) + i * weight.slab, weight.bands) for i, width in enumerate(widths)]
        band = [np.repeat(np.arange(weight.bands), width) for width in widths]
        return np.concatenate(band), np.concatenate(column)
    owner = np.repeat(np.arange(weight.slabs * bands if weight.bands else 0), np.diff(weight.starts))
    return owner % bands, owner // bands * weight.slab + weight.columns


def _entries(weight: Weight) -> tuple[Index, Index, Index]:
    band, column = places(weight)
    row = (band[:, None] * weight.height + np.arange(weight.height)).ravel()
    inside = np.flatnonzero(row < weight.rows)
    return row[inside], np.repeat(column, weight.height)[inside], inside


DENSE = Layout(HEIGHTS[1:], _dense_arrays, _sizes, _dense_fault, _entries)
SPARSE = Layout(HEIGHTS, _sparse_arrays, _sizes, _sparse_fault, _entries)


def sparse(
    source: Triplets, height: int, kind: str, slab: int | None, pixels: int | None, scales: Float | None
) -> dict[str, Any]:
    """The arguments of ``Weight`` for a sparse matrix: where a band has a value, it has an entry."""
    rows, cols, row, column, value = source
    if height not in HEIGHTS:
        raise KernelError(f"{height} is not one of {HEIGHTS}", place="height", remedy="1 is CSR, 4 is a good block")
    bands = ceil(rows / height)
    key = row // height * np.int64(cols) + column if rows * cols else row
    taken, which = np.unique(key, return_inverse=True)
    if slab is None:
        slab = fast_slab(cols, len(taken) / (bands * cols) if bands and cols else 0.0, pixels, height, kind)
    if not 1 <= slab <= SLAB_MAX:
        raise KernelError(f"{slab} is not in 1 .. {SLAB_MAX}", place="slab", remedy="leave it out")
    values = np.zeros((len(taken), height), np.float32)
    values[which, row % height] = value
    band, place = taken // max(cols, 1), taken % max(cols, 1)
    order = np.lexsort((place, band, place // slab))
    band, place, values = band[order], place[order], values[order]
    starts = starts_of(np.bincount(place // slab * bands + band, minlength=max(1, ceil(cols / slab)) * bands))
    rows_of = np.repeat(band[:, None], height, 1) * height + np.arange(height)
    held, scales = stored(values, rows_of, rows, kind, scales)
    arrays = {"values": held, "starts": starts, "columns": (place % slab).astype(np.uint16), "scales": scales}
    return {"rows": rows, "cols": cols, "slab": slab, "height": height, "type": kind} | arrays


def dense(source: Triplets, height: int, kind: str, slab: int | None, scales: Float | None) -> dict[str, Any]:
    """The arguments of ``Weight`` for a matrix with all its values."""
    rows, cols, row, column, value = source
    if height not in HEIGHTS[1:]:
        raise KernelError(f"{height} is not one of {HEIGHTS[1:]}", place="height", remedy="leave it out")
    bands = ceil(rows / height)
    slab = fast_slab(cols, 1.0, None, height) if slab is None else slab
    whole = np.zeros((bands * height, cols), np.float32)
    whole[row, column] = value
    blocks = whole.reshape(bands, height, cols).transpose(0, 2, 1)  # [bands, cols, height]
    parts = [blocks[:, first : first + slab].reshape(-1, height) for first in range(0, max(cols, 1), slab)]
    owner = np.arange(bands * height).reshape(bands, 1, height)
    owners = [np.broadcast_to(owner, (bands, min(slab, cols - first), height)).reshape(-1, height)
              for first in range(0, cols, slab)]  # fmt: skip
    rows_of = np.concatenate(owners) if owners else np.zeros((0, height), np.int64)
    held, scales = stored(np.concatenate(parts), rows_of, rows, kind, scales)
    return {"rows": rows, "cols": cols, "slab": slab, "height": height, "type": kind, "values": held, "scales": scales}


def fast_slab(cols: int, density: float, pixels: int | None = None, height: int = 1, kind: str = "float32") -> int:
    """Columns per slab that suit the vector kernels, slabs being equally wide.

    Two forces, measured in docs/kernels.md: 192 columns x 80 pixels (or as much in another shape, where the pixels are
    known and fewer) are about what the first-level cache serves with help from the second, 128 where each is used
    often; below 13 entries per band of a slab, beginning and ending a band costs more than it saves. Bands of several
    rows use what they load as many times, so the second-level cache is near enough: 1024 columns. Where arithmetic in
    16 bits is allowed, x takes half as much, and where it is not, slabs twice as wide cost 3 %. A single pixel needs no
    slabs.
    """
    if pixels == 1:
        return min(SLAB_MAX, max(1, cols))
    panel = 80 if pixels is None else max(16, min(80, ceil(pixels / 16) * 16))
    near = 1024 if height > 1 else 128 if density > 0.3 else 192
    if kind in ("float16", "bfloat16") and height == 1:
        near *= 2
    widest = max(near * 80 / panel, 13 / max(density, 1e-9))
    return min(SLAB_MAX, max(1, ceil(cols / max(1, ceil(cols / widest)))))
