"""Families: units are interchangeable when they appear equally often along every axis of every value and tensor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from coppice.core.labels import Ids
from coppice.core.solve import Solution


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
