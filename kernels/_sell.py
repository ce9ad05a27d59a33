"""Weights as sliced ELLPACK with a moving window: sixteen rows side by side, four int8 values of each to an entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from coppice.kernels._errors import KernelError
from coppice.kernels._layout import Arrays, Fault, Float, Index, Layout, no_slab, starts_fault, starts_of, stored

if TYPE_CHECKING:
    from coppice.kernels._convert import Triplets
    from coppice.kernels._weight import Weight

#: Lanes of a band, values of a lane in an entry, what first columns are divided by, columns that an offset reaches.
LANES, QUAD, UNIT, WINDOW = 16, 4, 64, 256
#: Rows that are sorted among themselves by their number of entries.
SORTED = 64
#: First columns are stored in 16 bits.
COLS_MAX = UNIT << 16


def _sizes(weight: Weight) -> Fault:
    if weight.cols > COLS_MAX:
        return "cols", f"{weight.cols} is not in 0 .. {COLS_MAX}"
    return no_slab(weight)


def _arrays(weight: Weight) -> Arrays:
    entries = len(weight.values)
    return {
        "values": (np.int8, (None, LANES, QUAD)),
        "starts": (np.uint32, (weight.bands + 1,)),
        "columns": (np.uint16, (entries,)),
        "offsets": (np.uint8, (entries, LANES, QUAD)),
        "lanes": (np.uint8, (weight.rows,)),
    }


def _columns(weight: Weight) -> Index:
    """Of every value, those that fill up among them."""
    assert weight.columns is not None
    assert weight.offsets is not None
    return weight.columns.astype(np.int64)[:, None, None] * UNIT + weight.offsets


def _rows_of_lanes(weight: Weight) -> Index:
    """[bands * LANES]: the row of each lane, or one past the matrix."""
    rows = np.full(weight.bands * LANES, weight.rows)
    row = np.arange(weight.rows)
    rows[row if weight.lanes is None else row // SORTED * SORTED + weight.lanes] = row
    return rows


def _fault(weight: Weight) -> Fault:
    assert weight.starts is not None
    assert weight.columns is not None
    fault = starts_fault(weight.starts, weight.entries)
    if fault:
        return fault
    outside = weight.columns.astype(np.int64) * UNIT >= weight.cols
    if outside.any():
        return "columns", f"entry {int(np.argmax(outside))} begins past the last column"
    assert weight.offsets is not None
    band = np.repeat(np.arange(weight.bands, dtype=np.uint32), np.diff(weight.starts))
    for lane in range(LANES):
        used = np.flatnonzero(weight.values[:, lane])
        entry = used // QUAD
        column = weight.columns[entry].astype(np.int64) * UNIT + weight.offsets[:, lane].ravel()[used]
        wrong = column >= weight.cols
        wrong[1:] |= (band[entry[1:]] == band[entry[:-1]]) & (column[1:] <= column[:-1])
        if wrong.any():
            first = int(entry[np.argmax(wrong)])
            return "offsets", f"entry {first}, lane {lane}: outside of the matrix, or not after the value before it"
    if weight.lanes is None:
        return None
    row = np.arange(weight.rows)
    places = row // SORTED * SORTED + weight.lanes
    if np.any(weight.lanes >= np.minimum(SORTED, weight.bands * LANES - row // SORTED * SORTED)):
        return "lanes", "a row has a lane past its window"
    if len(np.unique(places)) < len(places):
        return "lanes", "two rows have the same lane"
    return None


def _entries(weight: Weight) -> tuple[Index, Index, Index]:
    assert weight.starts is not None
    entry, lane, quad = np.nonzero(weight.values)
    band = np.repeat(np.arange(weight.bands), np.diff(weight.starts))[entry]
    row, column = _rows_of_lanes(weight)[band * LANES + lane], _columns(weight)[entry, lane, quad]
    inside = row < weight.rows
    flat = np.ravel_multi_index((entry, lane, quad), weight.values.shape) if len(entry) else entry
    return row[inside], column[inside], flat[inside]


SELL = Layout((LANES,), _arrays, _sizes, _fault, _entries, ("int8",), ("lanes",))


def sell(source: Triplets, scales: Float | None) -> dict[str, Any]:
    """The arguments of ``Weight`` for a matrix.

    An entry begins at the first column, rounded down, that any of its lanes still has to store, and each lane puts up
    to four values there of those that the window reaches: one that is ahead of the others waits for them. Measured in
    docs/kernels.md: at 90 % zeros 92 % of what is stored are values, against 52 % for fixed groups of 64 columns.
    """
    rows, cols, row, column, value = source
    if cols > COLS_MAX:
        raise KernelError(f"{cols} columns, {COLS_MAX} at most", place="matrix", remedy="take Weight.bitmask")
    held, scales = stored(value, row, rows, "int8", scales)
    used = np.flatnonzero(held)
    used = used[np.lexsort((column[used], row[used]))]
    row, column, held = row[used], column[used], held[used]
    counts = np.bincount(row, minlength=rows)
    window = np.arange(rows) // SORTED
    lanes = np.zeros(rows, np.int64)
    lanes[np.lexsort((-counts, window))] = np.arange(rows) % SORTED
    bands = -(-rows // LANES)
    begin, end = (np.zeros(bands * LANES, np.int64) for _ in range(2))
    begin[window * SORTED + lanes], end[window * SORTED + lanes] = np.cumsum(counts) - counts, np.cumsum(counts)
    taken = _taken(np.append(column, cols), begin.reshape(bands, LANES), end.reshape(bands, LANES))
    order = np.argsort(taken["band"], kind="stable")
    first, which, quads = taken["first"][order], taken["which"][order], taken["kept"][order]
    slots = np.arange(QUAD) < quads[:, :, None]
    place = np.where(slots, which[:, :, None] + np.arange(QUAD), len(held))
    offsets = np.where(slots, np.append(column, 0)[place] - first[:, None, None] * UNIT, 0)
    return {
        "rows": rows, "cols": cols, "slab": 0, "height": LANES, "type": "int8",
        "values": np.append(held, np.int8(0))[place], "starts": starts_of(np.bincount(taken["band"], minlength=bands)),
        "columns": first.astype(np.uint16), "offsets": offsets.astype(np.uint8), "lanes": lanes.astype(np.uint8),
        "scales": scales,
    }  # fmt: skip


def _taken(column: Index, begin: Index, end: Index) -> dict[str, Index]:
    """Entry by entry, each for one band: the band, its first column over UNIT, and of each lane the first of its values
    and how many it takes. All bands go on side by side; ``column`` ends with one past all."""
    parts: dict[str, list[Index]] = {"band": [], "first": [], "which": [], "kept": []}
    band = np.arange(len(begin))
    past = len(column) - 1
    while True:
        left = (begin < end).any(axis=1)
        band, begin, end = band[left], begin[left], end[left]
        if not len(band):
            break
        first = column[np.where(begin < end, begin, past)].min(axis=1) // UNIT
        kept = np.zeros(begin.shape, np.int64)
        for _ in range(QUAD):
            at = begin + kept
            kept += (at < end) & (column[np.minimum(at, past)] < (first * UNIT + WINDOW)[:, None])
        for name, part in (("band", band), ("first", first), ("which", begin), ("kept", kept)):
            parts[name].append(part)
        begin = begin + kept
    shapes = {"band": (0,), "first": (0,), "which": (0, LANES), "kept": (0, LANES)}
    return {name: np.concatenate([np.zeros(shapes[name], np.int64), *part]) for name, part in parts.items()}
