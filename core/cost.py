"""Costs of whole populations of configs at once: parameters, multiply-accumulates, bytes.

The number of kept positions of an axis is a polynomial in the kept widths: a sum over families for a concatenation, a
product for an axis that is a grid. Every cost is a sum of products of such counts, so a population is a few matrix
operations. What only erased segments need costs nothing. Parameters count what the graph trains (`nn.Parameter`), bytes
all stored tensors, MACs one sample, latency (where it was measured) seconds of one call as traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, diags_array

from coppice.core.segments import ALWAYS, Segments
from coppice.core.solve import Bools

Floats = npt.NDArray[np.float64]

METRICS = ("params", "macs", "bytes")
"""What every space prices; one that was measured (`coppice.with_latency`) prices ``LATENCY`` as well."""

LATENCY = "latency"


@dataclass(frozen=True, eq=False)
class Term:
    """``weights[m]`` times the product over ``axes`` of their kept counts, added to metric m while ``rule`` holds.

    Weights that are left out at the end are zero.

    The rule is one of the model's liveness (`coppice.core.segments.Liveness`): what segments are erased decides it.
    """

    weights: tuple[float, ...]
    axes: tuple[int, ...]
    rule: int = ALWAYS


@dataclass(frozen=True, eq=False)
class CostModel:
    """``monomials[j]`` is a tuple of family indices whose widths multiply; ``counts[axis, j]`` is its coefficient."""

    families: int
    monomials: tuple[tuple[int, ...], ...]
    counts: csr_array
    terms: tuple[Term, ...]
    exact: bool = True
    segments: Segments = field(default_factory=Segments)
    metrics: tuple[str, ...] = METRICS

    def evaluate(self, widths: npt.NDArray[np.int64], erased: Bools | None = None) -> dict[str, Floats]:
        """float64[n] per metric, for int widths [n, families] and, where segments go, bool erased [n, segments]."""
        counts: Floats = np.array(widths, dtype=np.float64).reshape(len(widths), self.families)
        if erased is None or not erased.any():
            return self._sum(counts, None)
        erased = np.broadcast_to(erased, (len(counts), len(self.segments)))
        for k, segment in enumerate(self.segments):
            for family in segment.families:
                counts[erased[:, k], family] = 0.0
        return self._sum(counts, self.segments.liveness.evaluate(erased))

    def after(self, erased: Bools) -> CostModel:
        """The costs of what is left once ``erased`` (bool[segments]) is gone for good, over the same families."""
        live = self.segments.liveness.evaluate(erased[None])[0]
        gone = {f for k in np.flatnonzero(erased) for f in self.segments[int(k)].families}
        left = np.array([float(gone.isdisjoint(monomial)) for monomial in self.monomials])
        return replace(
            self, counts=self.counts @ diags_array(left), terms=tuple(term for term in self.terms if live[term.rule])
        )

    def _sum(self, widths: Floats, live: Bools | None) -> dict[str, Floats]:
        totals = {metric: np.empty(len(widths)) for metric in self.metrics}
        for start in range(0, len(widths), 8192):  # stays in cache
            part = widths[start : start + 8192]
            columns = np.ones((len(self.monomials), len(part)))
            for j, monomial in enumerate(self.monomials):
                for f in monomial:
                    columns[j] *= part[:, f]
            counts = self.counts @ columns
            sums = np.zeros((len(self.metrics), len(part)))
            for term in self.terms:
                value = np.ones(len(part)) if live is None else live[start : start + 8192, term.rule].astype(float)
                for axis in term.axes:
                    value *= counts[axis]
                for m, weight in enumerate(term.weights):
                    if weight:
                        sums[m] += weight * value
            for m, metric in enumerate(self.metrics):
                totals[metric][start : start + 8192] = sums[m]
        return totals

    def marginal(self, widths: npt.NDArray[np.int64], metric: str) -> Floats:
        """float64[families]: how much ``metric`` falls when one more unit of each family leaves."""
        steps = np.maximum(widths[None, :] - np.eye(self.families, dtype=np.int64), 0)
        values = self.evaluate(np.concatenate([widths[None, :], steps]))[metric]
        fall: Floats = values[0] - values[1:]
        return fall


def merge_terms(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Sum the weights of terms over the same axes under the same rule."""
    merged: dict[tuple[tuple[int, ...], int], list[float]] = {}
    for term in terms:
        key = (tuple(sorted(term.axes)), term.rule)
        own = merged.setdefault(key, [])
        own += [0.0] * (len(term.weights) - len(own))
        for m, weight in enumerate(term.weights):
            own[m] += weight
    return tuple(Term(tuple(weights), axes, rule) for (axes, rule), weights in merged.items())
