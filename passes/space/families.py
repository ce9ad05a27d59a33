"""Families: units are interchangeable when they appear equally often along every axis of every value and tensor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from coppice.core.labels import Ids
from coppice.core.solve import Solution


def leaf_table(solution: Solution) -> Ids:
    """int[classes, depth]: the leaves that remove each class (itself for a leaf, none for a frozen one), -1 padded."""
    table = np.where(solution.frozen, -1, np.arange(solution.size))[:, None]
    for grid in solution.grids:
        at = np.indices(grid.shape).reshape(len(grid.parts), -1)
        rows = np.concatenate([table[part[where]] for part, where in zip(grid.parts, at, strict=True)], axis=1)
        rows = -np.sort(-rows, axis=1)  # leaves first, padding last
        used = max(1, int((rows >= 0).any(axis=0).sum()))
        if used > table.shape[1]:
            table = np.pad(table, ((0, 0), (0, used - table.shape[1])), constant_values=-1)
        table[grid.flat] = np.pad(rows[:, :used], ((0, 0), (0, table.shape[1] - used)), constant_values=-1)
    return table


def signatures(solution: Solution, leaves: Ids, axes: Iterable[Ids]) -> npt.NDArray[np.uint64]:
    """uint64[classes]: equal for leaves that appear equally often along each of ``axes`` and each part of each grid."""
    rng = np.random.default_rng(0)
    signature = np.zeros(solution.size, np.uint64)
    slots = [solution.class_of[ids] for ids in axes]
    slots += [part for grid in solution.grids for part in grid.parts]
    for classes in slots:
        salt = rng.integers(1, 2**63, dtype=np.uint64)
        for column in leaves[classes].T:
            hit = column[column >= 0]
            if len(hit):
                np.add.at(signature, hit, salt)
    return signature
