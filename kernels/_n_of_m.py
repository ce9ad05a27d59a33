"""Weights with N entries in each group of M columns of a row: sixteen rows side by side, positions in four bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from coppice.kernels._errors import KernelError
from coppice.kernels._layout import Arrays, Fault, Float, Index, Layout, no_slab, stored
from coppice.kernels._types import TYPES

if TYPE_CHECKING:
    from coppice.kernels._convert import Triplets
    from coppice.kernels._weight import Weight

#: Columns that a group may have.
GROUPS = (2, 4, 8, 16)

#: Lanes of a band, columns that a position counts in, positions in a word.
LANES, CHUNK, WORD = 16, 16, 8


def _count(weight: Weight) -> int:
    """Entries of a row."""
    return weight.cols // weight.group * weight.kept


def _sizes(weight: Weight) -> Fault:
    if weight.group not in GROUPS or not 1 <= weight.kept < weight.group:
        return "kept and Weight.group", f"{weight.kept} of {weight.group}: there is 1 .. M - 1 of M in {GROUPS}"
    if weight.cols % weight.group:
        return "cols", f"{weight.cols} is no multiple of {weight.group}"
    return no_slab(weight)


def _arrays(weight: Weight) -> Arrays:
    words = -(-_count(weight) // WORD)
    return {
        "values": (TYPES[weight.type], (weight.bands * _count(weight), LANES)),
        "positions": (np.uint32, (weight.bands, words, LANES)),
    }


def _positions(weight: Weight) -> Index:
    """[bands, entries of a row, lanes], each in its sixteen columns."""
    assert weight.positions is not None
    words = weight.positions[:, :, None, :] >> (4 * np.arange(WORD, dtype=np.uint32))[:, None] & 15
    bands, count, *_ = words.shape
    return words.reshape(bands, count * WORD, LANES)[:, : _count(weight)].astype(np.int64)


def _fault(weight: Weight) -> Fault:
    if not weight.entries:
        return None  # however many columns there are
    positions = _positions(weight)
    entry = np.arange(_count(weight))
    group = entry % (weight.kept * CHUNK // weight.group) // weight.kept
    wrong = positions // weight.group != group[:, None]
    wrong[:, 1:] |= (positions[:, 1:] <= positions[:, :-1]) & (entry[1:] % weight.kept != 0)[:, None]
    band, which, lane = np.nonzero(wrong)
    inside = np.flatnonzero(band * LANES + lane < weight.rows)
    if len(inside):
        first = inside[0]
        row, place = band[first] * LANES + lane[first], which[first]
        return "positions", f"entry {place} of row {row} leaves its group or does not lie after the one before it"
    return None


def _entries(weight: Weight) -> tuple[Index, Index, Index]:
    if not weight.entries:
        none = np.zeros(0, np.int64)
        return none, none, none
    column = _positions(weight)
    column += (np.arange(_count(weight)) // (weight.kept * CHUNK // weight.group) * CHUNK)[:, None]
    band, _, lane = np.indices(column.shape)
    row = (band * LANES + lane).ravel()
    inside = np.flatnonzero(row < weight.rows)
    return row[inside], column.ravel()[inside], inside


N_OF_M = Layout((LANES,), _arrays, _sizes, _fault, _entries)


def n_of_m(source: Triplets, n: int, m: int, kind: str, scales: Float | None) -> dict[str, Any]:
    """The arguments of ``Weight`` for a matrix that has the pattern; where a group has fewer entries, zeros fill up."""
    rows, cols, row, column, value = source
    if m not in GROUPS or not 1 <= n < m:
        raise KernelError(f"{n} of {m}", place="n, m", remedy=f"take m of {GROUPS} and n in 1 .. m - 1")
    if cols % m:
        raise KernelError(f"{cols} columns are no multiple of {m}", place="matrix", remedy="append columns of zeros")
    bands, groups = -(-rows // LANES), cols // m
    whole = np.zeros((bands * LANES, groups, m), np.float32)
    kept = np.zeros(whole.shape, bool)
    whole[row, column // m, column % m] = value
    kept[row, column // m, column % m] = True
    many = kept.sum(axis=2) > n
    if many.any():
        first, group = (int(index[0]) for index in np.nonzero(many))
        columns = f"columns {group * m} .. {group * m + m - 1}"
        fact = f"row {first} has {int(kept[first, group].sum())} values in {columns}"
        remedy = f"keep the {n} largest magnitudes of every {m} columns and train on, or take Weight.bitmask"
        raise KernelError(fact, place="matrix", remedy=remedy)
    place = np.sort(np.argsort(~kept, axis=2, kind="stable")[:, :, :n], axis=2)
    values = np.take_along_axis(whole, place, 2).reshape(bands, LANES, groups * n).transpose(0, 2, 1)
    position = (place + np.arange(groups)[:, None] % (CHUNK // m) * m).reshape(bands, LANES, groups * n)
    count = -(-groups * n // WORD)
    padded = np.zeros((bands, LANES, count * WORD), np.uint32)
    padded[:, :, : groups * n] = position
    words = padded.reshape(bands, LANES, count, WORD) << (4 * np.arange(WORD, dtype=np.uint32))
    rows_of = np.broadcast_to((np.arange(bands) * LANES)[:, None, None] + np.arange(LANES), values.shape)
    held, scales = stored(values.reshape(-1, LANES), rows_of.reshape(-1, LANES), rows, kind, scales)
    return {
        "rows": rows, "cols": cols, "slab": 0, "height": LANES, "type": kind, "kept": n, "group": m, "values": held,
        "positions": np.bitwise_or.reduce(words, axis=3).transpose(0, 2, 1), "scales": scales,
    }  # fmt: skip
