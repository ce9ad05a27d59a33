"""The global allocator: which units leave so that the budget is met in cost space, and not one unit more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from coppice.core.budget import Budget
from coppice.core.config import Config
from coppice.core.errors import UsageError
from coppice.core.space import Family, Floats, Space

Ints = npt.NDArray[np.int64]

FLOOR = 0.1
"""Families keep at least this fraction of their units while the budget can be met so: no layer is strangled first."""

SLACK = 0.002
"""A config that spends this close to the budget is not improved further."""

STEPS = 16
"""How many steps of one family may be traded for a step of another, dearer one."""


def allocate(
    space: Space, scores: Mapping[str, Floats], budget: Budget, most: Mapping[str, int] | None = None
) -> Config:
    """The config that meets ``budget`` and loses the least score for the cost it saves.

    ``scores[family]`` is the importance of each unit. Units leave in the order of score per marginal cost, as many as
    the budget asks for (bisection over the vectorised cost model); then whatever still fits comes back, best first.
    ``most[family]``, allowed widths, are not exceeded: a choice made in turns shrinks from one turn to the next.
    ``budget`` must be reachable (`coppice.core.budget.resolve` checks it).
    """
    families = space.families
    for family in families:
        if not np.isfinite(scores[family.name]).all():
            raise UsageError(
                "a score is NaN or infinite",
                place=f"family {family.name}",
                remedy="check the calibration data, and that training has not diverged",
            )
    top = np.array([min(f.widths[-1], (most or {}).get(f.name, f.size)) for f in families], np.int64)
    if not families or budget.met(_costs(space, top)):
        return space.with_widths({f.name: int(w) for f, w in zip(families, top, strict=True)}, scores)
    for floor in (FLOOR, 0.0):
        widths = _bisect(space, scores, budget, floor, top)
        if budget.met(_costs(space, widths)):
            break
    widths = _exchange(space, scores, budget, _refill(space, scores, budget, widths, top), top)
    widths = _refill(space, scores, budget, widths, top)  # a trade may have made room
    return space.with_widths({f.name: int(w) for f, w in zip(families, widths, strict=True)}, scores)


def _costs(space: Space, widths: Ints) -> dict[str, float]:
    return {metric: float(values[0]) for metric, values in space.cost(widths[None, :]).items()}


def _bisect(space: Space, scores: Mapping[str, Floats], budget: Budget, floor: float, top: Ints) -> Ints:
    """Widths, at most ``top``, after removing the shortest prefix of the removal order that meets the budget."""
    families = space.families
    full = np.array([f.size for f in families], np.int64)
    least = np.array([max(f.widths[0], _at_least(f, floor * f.size)) for f in families], np.int64)
    price = np.zeros(len(families))
    for metric, limit in budget.limits:
        price += space.costs.marginal(full, metric) / limit
    owner = np.concatenate([np.full(n - low, k) for k, (n, low) in enumerate(zip(full, least, strict=True))])
    worth = np.concatenate(
        [
            _worth(scores[f.name], f.size - low) / max(price[k], 1e-30)
            for k, (f, low) in enumerate(zip(families, least, strict=True))
        ]
    )
    owner = owner[np.argsort(worth, kind="stable")].astype(np.int64)

    def after(count: int) -> Ints:
        left = np.minimum(full - np.bincount(owner[:count], minlength=len(families)), top)
        return np.array([_at_least(f, w) for f, w in zip(families, left, strict=True)], np.int64)

    low, high = 0, len(owner)
    while low < high:
        middle = (low + high) // 2
        if budget.met(_costs(space, after(middle))):
            high = middle
        else:
            low = middle + 1
    return after(low)


def _worth(scores: Floats, count: int) -> Floats:
    """What removing the ``count`` least units in turn loses: each score over the fraction of the family that is left.

    The division makes a family dearer as it shrinks, so that a flat field of scores is thinned, not emptied.
    """
    ranked = np.sort(np.maximum(scores, 0.0))
    left = 1.0 - np.arange(len(ranked)) / len(ranked)
    return (ranked / left)[:count]


def _at_least(family: Family, width: float) -> int:
    """The smallest allowed width that is at least ``width``."""
    widths = np.asarray(family.widths)
    return int(widths[min(int(np.searchsorted(widths, width - 1e-9)), len(widths) - 1)])


def _refill(space: Space, scores: Mapping[str, Floats], budget: Budget, widths: Ints, top: Ints) -> Ints:
    """Give units back while any step up to a family's next allowed width still fits, the best score per cost first."""
    families = space.families
    ranked = [-np.sort(-np.asarray(scores[f.name])) for f in families]
    metric = budget.limits[0][0]
    while True:
        steps = _ups(families, widths, top)
        if not steps:
            return widths
        trials = np.repeat(widths[None, :], len(steps), axis=0)
        for i, (k, up) in enumerate(steps):
            trials[i, k] = up
        costs = space.cost(trials)
        fits = np.all([costs[m] <= limit * (1 + 1e-12) for m, limit in budget.limits], axis=0)
        if not fits.any():
            return widths
        spent = costs[metric] - _costs(space, widths)[metric]
        gain = np.array([ranked[k][widths[k] : up].sum() for k, up in steps]) / np.maximum(spent, 1e-30)
        widths = trials[int(np.argmax(np.where(fits, gain, -np.inf)))]


def _exchange(space: Space, scores: Mapping[str, Floats], budget: Budget, widths: Ints, top: Ints) -> Ints:
    """Trade steps down in one family for a step up in another while that brings the cost closer to the budget.

    Removing single units leaves a gap of up to one unit's cost; trades between families of different cost close it.
    Of several limits, the one spent most counts. One step is traded for one while that helps; then for several, if the
    units that come back score at least as much as those that leave.
    """
    prefixes = [np.concatenate([[0.0], np.cumsum(-np.sort(-np.asarray(scores[f.name])))]) for f in space.families]
    for _ in range(4 * len(space.families)):
        if _spent(space, budget, widths[None, :])[0] >= 1 - SLACK:
            return widths
        better = _trade(space, budget, widths, top, 1)
        better = _trade(space, budget, widths, top, STEPS, prefixes) if better is None else better
        if better is None:
            return widths
        widths = better
    return widths


def _trade(
    space: Space, budget: Budget, widths: Ints, top: Ints, steps: int, prefixes: list[Floats] | None = None
) -> Ints | None:
    """The trade of one step up for at most ``steps`` down that uses most of the budget; None where none uses more.

    ``prefixes[k][n]`` is the score of the n best units of family k; with it, trades that lose score do not count.
    """
    families = space.families
    ups = _ups(families, widths, top)
    downs = [(k, down) for k, f in enumerate(families) for down in _below(f, int(widths[k]), steps)]
    if len(ups) * len(downs) > 65536:
        return None
    trials = [(i, up, j, down) for i, up in ups for j, down in downs if i != j]
    if prefixes is not None:
        left = [p - p[w] for p, w in zip(prefixes, widths, strict=True)]
        trials = [(i, up, j, down) for i, up, j, down in trials if left[i][up] + left[j][down] >= 0]
    rows = np.repeat(widths[None, :], len(trials) + 1, axis=0)  # the last row trades nothing
    for row, (i, up, j, down) in zip(rows, trials, strict=False):
        row[i], row[j] = up, down
    after = _spent(space, budget, rows)
    best = int(np.argmax(np.where(after <= 1 + 1e-12, after, -np.inf)))
    return rows[best] if after[best] > after[-1] else None


def _spent(space: Space, budget: Budget, widths: Ints) -> Floats:
    """float64[n]: the largest fraction of any limit that widths [n, families] use."""
    costs = space.cost(widths)
    shares: Floats = np.max([costs[metric] / limit for metric, limit in budget.limits], axis=0)
    return shares


def _below(family: Family, width: int, steps: int) -> list[int]:
    """The ``steps`` allowed widths next below ``width``, or as many as there are."""
    return [w for w in family.widths if w < width][-steps:]


def _ups(families: Sequence[Family], widths: Ints, top: Ints) -> list[tuple[int, int]]:
    """(family, its next allowed width) for every family that may grow within ``top``."""
    found = []
    for k, family in enumerate(families):
        up = next((w for w in family.widths if w > widths[k]), None)
        if up is not None and up <= top[k]:
            found.append((k, up))
    return found
