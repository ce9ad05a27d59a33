"""`prune`: score every unit once and let the allocator meet the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coppice.core.budget import BudgetLike, resolve
from coppice.core.config import Config
from coppice.core.space import Space
from coppice.core.tensors import refresh
from coppice.passes.prune.allocate import allocate
from coppice.passes.prune.scores import Loss, unit_scores


def prune(
    space: Space,
    budget: BudgetLike,
    score: str | Mapping[str, Any] = "magnitude",
    calibration: Iterable[Any] | None = None,
    *,
    loss: Loss | None = None,
    seed: int = 0,
) -> Config:
    """A config within ``budget`` (for example ``{"macs": "50%"}``) that keeps the units with the highest ``score``.

    ``score`` is ``"magnitude"``, ``"taylor"`` (needs ``calibration``), ``"random"``, or your own numbers per family.
    Raises `BudgetError` with the closest reachable cost where the space cannot get there.
    """
    limits = resolve(budget, space)
    refresh(space.graph)
    return allocate(space, unit_scores(space, score, calibration, loss, seed), limits)
