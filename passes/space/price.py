"""The cost model of a space: kept counts as polynomials in widths, MACs from the op table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array
from torch import fx, nn

from coppice.core.calls import Call
from coppice.core.cost import LATENCY, METRICS, CostModel, Term, merge_terms
from coppice.core.graph import Graph, Value
from coppice.core.labels import Axis, Flow, Ids, Label, axis_size
from coppice.core.ops import lookup
from coppice.core.segments import Segments
from coppice.core.solve import Solution

Polynomial = tuple[tuple[tuple[int, ...], float], ...]


def price(
    graph: Graph,
    flow: Flow,
    tensor_axes: Mapping[str, tuple[Ids | None, ...]],
    solution: Solution,
    leaves: Ids,
    families: Sequence[Ids],
    segments: Segments,
    seconds: Mapping[fx.Node, tuple[float, float]] | None = None,
) -> CostModel:
    """Price params, MACs of one sample, and bytes for every config over ``families`` (classes of each).

    ``seconds`` are the latencies of calls, each a part that stays and a part that goes with the call's work: its MACs,
    or where it has none the numbers it gives.
    """
    live = segments.liveness
    family_of = np.full(solution.size, -1, np.int64)
    for f, classes in enumerate(families):
        family_of[classes] = f
    counter = _Counter(solution, leaves, family_of, [len(c) for c in families])
    terms: list[Term] = []
    for name, tensor in graph.tensors.items():
        fixed, axes = 1, []
        for k, size in enumerate(tensor.shape):
            ids = tensor_axes[name][k] if name in tensor_axes else None
            if ids is None:
                fixed *= size
            else:
                axes.append(counter.factor(ids))
        trained = 1.0 if isinstance(tensor, nn.Parameter) else 0.0
        terms.append(
            Term((trained * fixed, 0.0, float(tensor.element_size() * fixed)), tuple(axes), live.tensors[name])
        )
    samples = _samples(graph)
    for node in graph.fx.nodes:
        if node.op == "call_function":
            terms += _node_terms(node, flow, counter, samples, live.nodes[node])
            if seconds is not None and node in seconds:
                terms += _time_terms(node, flow, counter, live.nodes[node], *seconds[node])
    monomials = sorted({m for poly in counter.polynomials for m, _ in poly}) or [()]
    place = {monomial: j for j, monomial in enumerate(monomials)}
    entries = [(a, place[m], c) for a, poly in enumerate(counter.polynomials) for m, c in poly]
    rows, columns, coefficients = zip(*entries, strict=True) if entries else ((), (), ())
    shape = (max(1, len(counter.polynomials)), len(monomials))
    counts = csr_array((np.array(coefficients, float), (rows, columns)), shape=shape)
    metrics = METRICS if seconds is None else (*METRICS, LATENCY)
    return CostModel(len(families), tuple(monomials), counts, merge_terms(terms), counter.exact, segments, metrics)


def _samples(graph: Graph) -> int:
    """The traced batch size where it is dynamic (costs are per sample), else 1."""
    values = [node.meta["value"] for node in graph.placeholders()]
    sizes = [value.shape[0] for value in values if isinstance(value, Value) and any(value.symbols[:1])]
    return int(sizes[0]) if sizes else 1


def _node_terms(node: fx.Node, flow: Flow, counter: _Counter, samples: int, rule: int) -> list[Term]:
    terms = []
    for coefficient, axes in _work(node, flow):
        fixed, counted = counter.product(axes)
        terms.append(Term((0.0, coefficient * fixed / samples, 0.0), counted, rule))
    return [term for term in terms if term.weights[1]]


def _time_terms(node: fx.Node, flow: Flow, counter: _Counter, rule: int, fixed: float, scaled: float) -> list[Term]:
    """``fixed`` seconds, and ``scaled`` ones spread over the call's work at full size."""
    parts = _work(node, flow)
    if not parts:
        label = flow.labels.get(node)
        parts = [(1.0, label.axes)] if isinstance(label, Label) else []
    whole = sum(coefficient * math.prod(map(axis_size, axes)) for coefficient, axes in parts)
    if not whole:
        return [Term((0.0, 0.0, 0.0, fixed + scaled), (), rule)]
    terms = [Term((0.0, 0.0, 0.0, fixed), (), rule)]
    for coefficient, axes in parts:
        free, counted = counter.product(axes)
        terms.append(Term((0.0, 0.0, 0.0, scaled * coefficient * free / whole), counted, rule))
    return terms


def _work(node: fx.Node, flow: Flow) -> list[tuple[float, tuple[Axis, ...]]]:
    """The multiply-accumulates of a call: coefficients, and the axes whose sizes multiply them."""
    op = lookup(node.target)
    if op is None or op.macs is None:
        return []
    macs = op.macs(Call(node), flow)
    return [(float(part.coefficient), part.axes) for part in (macs if isinstance(macs, tuple) else (macs,))]


@dataclass
class _Counter:
    solution: Solution
    leaves: Ids
    family_of: Ids
    sizes: list[int]
    polynomials: list[Polynomial] = field(default_factory=list)
    exact: bool = True
    _known: dict[int, int] = field(default_factory=dict)
    _same: dict[Polynomial, int] = field(default_factory=dict)

    def product(self, axes: Sequence[Axis]) -> tuple[float, tuple[int, ...]]:
        """The product of the sizes of free factors, and the polynomials of the labelled ones."""
        fixed, counted = 1.0, []
        for axis in axes:
            for factor in axis:
                if factor.ids is None:
                    fixed *= factor.size
                else:
                    counted.append(self.factor(factor.ids))
        return fixed, tuple(counted)

    def factor(self, ids: Ids) -> int:
        """The index of the polynomial that counts the kept positions along ``ids``."""
        if id(ids) not in self._known:
            poly = self._polynomial(ids)
            if poly not in self._same:
                self._same[poly] = len(self.polynomials)
                self.polynomials.append(poly)
            self._known[id(ids)] = self._same[poly]
        return self._known[id(ids)]

    def _polynomial(self, ids: Ids) -> Polynomial:
        rows = self.leaves[self.solution.class_of[ids]]
        families = np.where(rows >= 0, self.family_of[rows], -1)
        if (families == families[:1]).all():  # as nearly always: no need to sort wide axes
            kinds, counts = families[:1], np.array([len(families)])
        else:
            kinds, counts = np.unique(-np.sort(-families, axis=1), axis=0, return_counts=True)
        result: list[tuple[tuple[int, ...], float]] = []
        for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
            monomial = tuple(sorted(f for f in kind if f >= 0))
            whole = int(np.prod([self.sizes[f] for f in monomial])) if monomial else 1
            self.exact &= count % whole == 0
            result.append((monomial, count / whole))
        return tuple(result)
