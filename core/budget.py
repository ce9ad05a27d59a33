"""Budgets: what a user may spend, in cost, never as a per-layer ratio."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from coppice.core.cost import LATENCY, METRICS
from coppice.core.errors import BudgetError, UsageError
from coppice.core.names import unknown_name
from coppice.core.space import Space

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
UNITS |= {"kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}

BudgetLike = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Budget:
    """``limits[metric]`` is the largest allowed cost; every one of them must be met."""

    limits: tuple[tuple[str, float], ...]

    def met(self, costs: Mapping[str, float]) -> bool:
        return all(costs[metric] <= limit * (1 + 1e-12) for metric, limit in self.limits)


def resolve(budget: BudgetLike, space: Space, skip: Iterable[str] = ()) -> Budget:
    """Turn ``{"macs": "50%", "params": "1.2M"}`` into absolute limits, and check that the space can meet them.

    A percentage is of the full model; numbers may end in k, M, G, KB, KiB and so on. A number below 1, and the float
    1.0, is a fraction; of ``latency`` it is seconds ("3ms"). ``skip`` are segments that may be erased to meet them.
    Raises `UsageError` for what is no budget, `BudgetError` (with the closest reachable cost) for one out of reach.
    """
    if not isinstance(budget, Mapping) or not budget:
        raise UsageError(f"{budget!r} is no budget", place="budget", remedy='give a dict such as {"macs": "50%"}')
    full = space.cost(space.full())
    least = space.cost(np.array([[f.widths[0] for f in space.families]], np.int64).reshape(1, -1), skip)
    limits: list[tuple[str, float]] = []
    for metric, value in budget.items():
        if metric == LATENCY and metric not in space.costs.metrics:
            raise UsageError(
                "this space has no latencies",
                place=f"budget {metric}={value}",
                remedy="measure them first: space = coppice.with_latency(space)",
            )
        if metric not in space.costs.metrics:
            raise unknown_name("budget metric", metric, METRICS)
        limits.append((metric, _amount(metric, value, float(full[metric][0]))))
    result = Budget(tuple(limits))
    reachable = {metric: float(least[metric][0]) for metric, _ in limits}
    for metric, limit in limits:
        if reachable[metric] > limit:
            share = 100 * reachable[metric] / float(full[metric][0])
            blocked = f"; {len(space.frozen)} axes are frozen" if space.frozen else ""
            raise BudgetError(
                f"{metric} cannot go down to {limit:,.0f}: the smallest subnet of this space has "
                f"{reachable[metric]:,.0f} ({share:.1f}% of the full model){blocked}",
                closest=reachable,
                place=f"budget {metric}={value}",
                remedy="ask for more, lower round_to and bounds, ignore fewer layers, or run `coppice explain` "
                "to see what holds the rest",
            )
    return result


def _amount(metric: str, value: str | int | float, full: float) -> float:
    place = f"budget {metric}={value}"
    units = SECONDS if metric == LATENCY else UNITS
    remedy = 'write "50%", "3ms" or seconds' if metric == LATENCY else 'write "50%", "1.2M", "512KiB" or a number'
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UsageError(f"{value!r} is no amount", place=place, remedy=remedy)
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(%|[a-zA-Z]*)\s*", value)
        if found is None or (found[2] != "%" and found[2].lower() not in units):
            raise UsageError(f"{value!r} is no amount", place=place, remedy=remedy)
        number, unit = float(found[1]), found[2]
        fraction = not unit and number < 1 and metric != LATENCY
        amount = number * (full / 100 if unit == "%" else full if fraction else units[unit.lower()])
        if unit == "%" and not 0 < number <= 100:
            raise UsageError("a percentage must be above 0 and at most 100", place=place, remedy=remedy)
    else:
        fraction = isinstance(value, float) and value <= 1 and metric != LATENCY
        amount = float(value) * (full if fraction else 1.0)
    if not math.isfinite(amount) or amount <= 0:
        raise UsageError("a budget must be positive", place=place, remedy=remedy)
    return amount
