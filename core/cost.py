"""Costs of whole populations of configs at once: parameters, multiply-accumulates, bytes.

The number of kept positions of an axis is a polynomial in the kept widths: a sum over families for a concatenation, a
product for an axis that is a grid. Every cost is a sum of products of such counts, so a population is a few matrix
operations. Parameters count what the graph trains (`nn.Parameter`), bytes all stored tensors, MACs one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

METRICS = ("params", "macs", "bytes")


@dataclass(frozen=True, eq=False)
class Term:
    """``weights[m]`` times the product over ``axes`` of their kept counts, added to metric m."""

    weights: tuple[float, float, float]
    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CostModel:
    """``monomials[j]`` is a tuple of family indices whose widths multiply; ``counts[axis, j]`` is its coefficient."""

    families: int
    monomials: tuple[tuple[int, ...], ...]
    counts: Floats
    terms: tuple[Term, ...]
    exact: bool = True

    def evaluate(self, widths: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """float64[n] per metric, for int widths [n, families]."""
        widths = np.asarray(widths, dtype=np.float64)
        widths = widths.reshape(len(widths), self.families)
        totals = {metric: np.empty(len(widths)) for metric in METRICS}
        for start in range(0, len(widths), 8192):  # stays in cache
            part = widths[start : start + 8192]
            columns = np.ones((len(self.monomials), len(part)))
            for j, monomial in enumerate(self.monomials):
                for f in monomial:
                    columns[j] *= part[:, f]
            counts = self.counts @ columns
            sums = np.zeros((len(METRICS), len(part)))
            for term in self.terms:
                value = np.ones(len(part))
                for axis in term.axes:
                    value *= counts[axis]
                for m, weight in enumerate(term.weights):
                    if weight:
                        sums[m] += weight * value
            for m, metric in enumerate(METRICS):
                totals[metric][start : start + 8192] = sums[m]
        return totals

    def marginal(self, widths: npt.NDArray[np.int64], metric: str) -> Floats:
        """float64[families]: how much ``metric`` falls when one more unit of each family leaves."""
        steps = np.maximum(widths[None, :] - np.eye(self.families, dtype=np.int64), 0)
        values = self.evaluate(np.concatenate([widths[None, :], steps]))[metric]
        fall: Floats = values[0] - values[1:]
        return fall


def merge_terms(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Sum the weights of terms over the same axes."""
    merged: dict[tuple[int, ...], list[float]] = {}
    for term in terms:
        key = tuple(sorted(term.axes))
        own = merged.setdefault(key, [0.0] * len(METRICS))
        for m, weight in enumerate(term.weights):
            own[m] += weight
    return tuple(Term((w[0], w[1], w[2]), key) for key, w in merged.items())
