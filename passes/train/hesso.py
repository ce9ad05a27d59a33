"""HESSO: hybrid saliency, redundant units in periods, and a corrective cycle (Chen et al., HESSO, 2024).

During the shrinking stage (`coppice.passes.train.engine`), units leave in ``periods``: before each, the allocator picks
as many more as bring the cost that much closer to the budget, by what was measured during the period before; then they
are scaled down after every update, linearly, and are zero when the period ends. What has left does not come back, so
the last period meets the budget with the units that were alive when it began.

The saliency is the mean of five criteria, each divided by its L2 norm over all units of the model. With x a unit's
weights and g their gradient, x and |x| now, the others averaged over the measurements:

    |x|      |x| / sqrt(size)      1 - cos(x, g)      |x.g|      (x.g)^2 / 2

The third is high where descent makes the unit grow (the sign is that of docs/decisions/0003-saliency-sign.md).

With ``cric``, the first third of the stage is a corrective cycle: candidates for removal are probed, their weights
halved, quartered, ... for single steps, and their |x.g| measured on the way to zero. First-order criteria see a unit's
surroundings only; on the way to zero, units that look redundant but are not show it. Candidates are picked anew, by all
that was measured, three times; then what the probes found decides. Scaling by powers of two is undone without loss, so
a checkpoint in the middle of a probe needs no copy of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from coppice.core.budget import Budget, BudgetLike
from coppice.core.config import Config
from coppice.core.errors import UsageError
from coppice.core.space import Floats, Space
from coppice.passes.prune.allocate import allocate
from coppice.passes.train.engine import PruningOptimizer
from coppice.passes.train.units import Parts, UnitIndex

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CYCLES = 3
"""How often the corrective cycle picks its candidates anew."""

DEPTH = 3
"""Probes scale candidates by 1/2, 1/4, ... 2**-DEPTH in turn."""


class HESSO(PruningOptimizer):
    """HESSO around ``base``; `PruningOptimizer` says what the arguments mean.

    ``periods`` is how many times units are picked, at most once a step. ``cric`` adds the corrective cycle, which looks
    longer before it picks. Between the steps of that cycle candidates may stand at a fraction of their weights.
    """

    def __init__(
        self,
        space: Space,
        base: torch.optim.Optimizer,
        budget: BudgetLike,
        *,
        steps: int = 1000,
        start: float = 0.1,
        stop: float = 0.6,
        periods: int = 10,
        cric: bool = False,
        group: ProcessGroup | None = None,
    ) -> None:
        if not isinstance(periods, int) or periods < 1:
            raise UsageError(f"periods={periods!r}", place="HESSO", remedy="give a number of periods, 1 or more")
        super().__init__(space, base, budget, steps=steps, start=start, stop=stop, group=group)
        length = self.stop - self.start
        self.periods, self.cric = periods, cric
        self._probing = length // 3 if cric else 0
        first, turns = self.start + self._probing, min(periods, length - self._probing)
        self._turns = tuple(first + (self.stop - first) * k // turns for k in range(turns))
        cycles = min(CYCLES, self._probing)
        self._cycles = tuple(self.start + self._probing * k // cycles for k in range(cycles))
        self._full = {metric: float(values[0]) for metric, values in space.cost(space.full()).items()}
        self._candidates: torch.Tensor | None = None
        self._depth = 0
        self._probes = 0

    # ---- which units leave -------------------------------------------------------------------------------------------

    def saliency(self) -> dict[str, Floats]:
        """The mean of the five criteria; 0 for units that have left already."""
        index = self._every
        norms = index.squares(index.look(dict(self._tensors))).sqrt() * self._undo()
        criteria = [
            norms.numpy(),
            (norms / index.sizes().sqrt().clamp_min(1)).numpy(),
            1 - self._average("cosine"),
            self._average("first"),
            self._average("second"),
        ]
        score = sum(c / max(float(np.linalg.norm(c)), 1e-30) for c in criteria) / len(criteria)
        return self._by_family(np.where(norms.numpy() > 0, score, 0.0))

    def _measure(self, index: UnitIndex, x: Parts, g: Parts) -> dict[str, torch.Tensor]:
        along, size = index.products(x, g), (index.squares(x) * index.squares(g)).sqrt()
        return {"cosine": along / size.clamp_min(1e-30), "first": along.abs(), "second": along.square() / 2}

    def _points(self) -> tuple[int, ...]:
        return self._turns

    def _choose(self) -> Config:
        """What leaves in the present period: the cost goes down by equal parts, and those that have left stay out."""
        return self._allocate((self._made + 1) / len(self._turns))

    def _preview(self) -> Config:
        return self._allocate(1.0)

    def _allocate(self, part: float) -> Config:
        limits = self.budget.limits
        if part < 1:
            limits = tuple((m, max(limit, self._full[m] - part * (self._full[m] - limit))) for m, limit in limits)
        scores = self.saliency()
        if self._config is None:
            return allocate(self.space, scores, Budget(limits))
        for family in self.space.families:
            scores[family.name] = scores[family.name].copy()
            scores[family.name][np.delete(np.arange(family.size), list(self._config[family.name]))] = -1.0
        return allocate(self.space, scores, Budget(limits), self._config.widths())

    def _decide(self) -> None:
        super()._decide()
        self._sums, self._measured = {}, 0  # the next choice looks at the period before it

    # ---- how they leave ----------------------------------------------------------------------------------------------

    def _push(self, index: UnitIndex, before: Sequence[torch.Tensor], stride: int) -> torch.Tensor:
        """Scale what is to leave in this period, so that it falls to zero linearly over the period's steps."""
        first, end = self._turns[self._made - 1], self._end()
        rest = end - 1 - self.count
        if rest == 0:
            return torch.ones_like(self._zeroed)
        factors = torch.full((index.count,), rest / min(rest + stride, end - first), dtype=torch.float64)
        factors[self._zeroed] = 1.0
        index.scale(self._tensors, factors)
        return self._zeroed

    # ---- the corrective cycle ----------------------------------------------------------------------------------------

    def _enter(self) -> None:
        if self._depth:
            self._scale(2.0**self._depth)
            self._depth = 0
        if self.count in self._cycles:
            first = self.count == self._cycles[0]
            self._pick(self._ranks.first(self._preview()))
            if first:
                self._sums, self._measured = {}, 0
        elif self.count == self.start + self._probing:
            self._candidates = None

    def _leave(self) -> None:
        if self._candidates is not None and self.count < self.start + self._probing and self._due():
            self._probes += 1
            self._depth = 1 + self._probes % DEPTH
            self._scale(2.0**-self._depth)

    def _pick(self, config: Config) -> None:
        gone = {f.name: np.delete(np.arange(f.size), list(config[f.name])) for f in self.space.families}
        flags = {f.name: np.isin(np.arange(f.size), gone[f.name]) for f in self.space.families}
        self._candidates = torch.from_numpy(np.concatenate([np.zeros(0, bool), *flags.values()]))

    def _scale(self, factor: float) -> None:
        assert self._candidates is not None
        factors = torch.ones(self._every.count, dtype=torch.float64)
        factors[self._candidates] = factor
        self._every.scale(self._tensors, factors)

    def _undo(self) -> torch.Tensor:
        """float64[units]: what a unit's weights must be multiplied by to be those before the probe."""
        factors = torch.ones(self._every.count, dtype=torch.float64)
        if self._depth and self._candidates is not None:
            factors[self._candidates] = 2.0**self._depth
        return factors

    # ---- state -------------------------------------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        return {"periods": self.periods, "cric": self.cric}

    def _extra(self) -> dict[str, Any]:
        none = torch.zeros(0, dtype=torch.bool)
        candidates = none if self._candidates is None else self._candidates
        return {"candidates": candidates, "depth": self._depth, "probes": self._probes}

    def _restore(self, extra: Mapping[str, Any]) -> None:
        candidates = extra["candidates"]
        self._candidates = candidates if len(candidates) else None
        self._depth, self._probes = int(extra["depth"]), int(extra["probes"])
