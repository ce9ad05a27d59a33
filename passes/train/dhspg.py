"""DHSPG: train once, and the redundant units are zero when training ends (Chen et al., OTOv2, 2023).

During the shrinking stage (`coppice.passes.train.engine`), redundant units are pushed towards zero, first by the dual
half-space penalty, from the middle on also by projection, and their norms are held under a line that falls to zero at
``stop``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from coppice.core.budget import BudgetLike
from coppice.core.space import Floats, Space
from coppice.passes.train.engine import PruningOptimizer
from coppice.passes.train.units import Parts, UnitIndex

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

DEFAULTS = {"sgd": (1e-3, 2.0, 10.0), "adam": (1e-2, 20.0, 1e3)}
"""Penalty strength lambda0, amplification and cap of the dual step, by kind of base optimizer (OTOv2, appendix)."""

ALIGNMENT = 0.8
"""How far the cosine of a unit and its gradient moves its saliency (docs/decisions/0003-saliency-sign.md)."""


class DHSPG(PruningOptimizer):
    """Dual half-space projected gradient around ``base``; `PruningOptimizer` says what the arguments mean.

    ``penalty`` is (lambda0, amplification, cap) of the dual step, by default OTOv2's for the kind of base; a unit
    becomes zero where a penalised step leaves less than ``epsilon`` of it in its old direction.
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
        epsilon: float = 0.0,
        penalty: tuple[float, float, float] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(space, base, budget, steps=steps, start=start, stop=stop, group=group)
        self.epsilon = epsilon
        kind = "sgd" if isinstance(base, torch.optim.SGD) else "adam"
        self.strength, self.amplify, self.cap = penalty or DEFAULTS[kind]

    def saliency(self) -> dict[str, Floats]:
        """The unit's magnitude (`Space.magnitudes`), less where its gradient already shrinks it.

        A positive cosine of x and its gradient means that descent already shrinks the unit, so it counts against it.
        """
        shares = self._every.shares(self._tensors).numpy()
        return self._by_family(shares * (1.0 - ALIGNMENT * np.clip(self._average("cosine"), -1, 1)))

    def _measure(self, index: UnitIndex, x: Parts, g: Parts) -> dict[str, torch.Tensor]:
        size = (index.squares(x) * index.squares(g)).sqrt()
        return {"cosine": index.products(x, g) / size.clamp_min(1e-30)}

    def _before(self, index: UnitIndex) -> Sequence[torch.Tensor]:
        return index.gather(self._tensors)

    def _push(self, index: UnitIndex, before: Sequence[torch.Tensor], stride: int) -> torch.Tensor:
        """The dual half-space step on redundant units (OTOv2, algorithm 2), then the falling norm.

        With move = after - before and shrink = stride lr lambda / |before|, the unit becomes
        scale ((1 - shrink) before + move); the sums of three products give its norm and direction without forming it.
        """
        move = [after.sub_(b) for after, b in zip(index.gather(self._tensors), before, strict=True)]
        norm2, along, far2 = index.squares(before), index.products(before, move), index.squares(move)
        rate = max(float(group["lr"]) for group in self.param_groups)
        shrink = stride * rate * self._lambda(norm2, along, far2, max(rate, 1e-30)) / norm2.sqrt().clamp_min(1e-30)
        rest = 1 - shrink
        zero = self._zeroed | (norm2 == 0)
        if self.count >= (self.start + self.stop) // 2:
            zero = zero | (rest * norm2 + along <= self.epsilon * norm2)
        left = (self.stop - 1 - self.count) / (self.stop - self.start)
        zero = zero | (left == 0)
        size = (rest.square() * norm2 + 2 * rest * along + far2).clamp_min(0).sqrt()
        scale = torch.minimum(torch.ones_like(size), self._norms * left / size.clamp_min(1e-30))
        scale[zero] = 0.0
        index.write(
            self._tensors,
            [
                m.add_(b * index.per_unit(rest, i, b)).mul_(index.per_unit(scale, i, b))
                for i, (b, m) in enumerate(zip(before, move, strict=True))
            ],
        )
        return zero

    def _lambda(self, norm2: torch.Tensor, move: torch.Tensor, move2: torch.Tensor, rate: float) -> torch.Tensor:
        """lambda per unit, so that the penalised step still descends where the unit's own step would grow it."""
        norm, xv, v2 = norm2.sqrt(), -move / rate, move2 / rate**2
        low = -xv / norm.clamp_min(1e-30)
        high = torch.where(xv < 0, -v2 * norm / xv.clamp_max(-1e-30), torch.full_like(xv, torch.inf))
        wanted = (self.amplify * low).clamp(self.strength, self.cap * self.strength)
        wanted = torch.where(wanted >= high, (low + high) / 2, wanted)
        return torch.where(xv < 0, wanted, torch.full_like(xv, self.strength))

    def _options(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "penalty": [self.strength, self.amplify, self.cap]}
