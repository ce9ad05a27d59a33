"""Differences between arms, seed by seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """The mean of other - ours over the seeds, its 95 % interval, and how often ours was better, equal, worse."""

    mean: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int

    @property
    def significant(self) -> bool:
        return not self.low <= 0.0 <= self.high


def compare(ours: npt.ArrayLike, other: npt.ArrayLike, seed: int = 0) -> Paired:
    """Paired percentile bootstrap (Efron and Tibshirani, 1993, chapter 13) over the seeds; values are [seeds]."""
    mine, theirs = np.asarray(ours, float), np.asarray(other, float)
    gap = theirs - mine
    chosen = np.random.default_rng(seed).integers(0, len(gap), (RESAMPLES, len(gap)))
    low, high = np.quantile(gap[chosen].mean(axis=1), (0.025, 0.975))
    return Paired(
        float(gap.mean()), float(low), float(high), int((gap < 0).sum()), int((gap == 0).sum()), int((gap > 0).sum())
    )


def mean_and_error(values: npt.ArrayLike) -> tuple[float, float]:
    """The mean and its standard error."""
    held = np.asarray(values, float)
    return float(held.mean()), float(held.std(ddof=1) / np.sqrt(len(held))) if len(held) > 1 else float("nan")
