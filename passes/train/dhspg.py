"""DHSPG: train once, and the redundant units are zero when training ends (Chen et al., OTOv2, 2023).

Three stages, counted in optimizer steps of ``steps`` in all:

1. *warm-up* (to ``start``): the base optimizer alone; gradients' alignment with each unit is averaged;
2. *penalty* (to ``stop``): the allocator has picked the redundant units whose removal meets the budget, and no more.
   They are pushed towards zero, first by the dual half-space penalty, from the middle on also by projection, and their
   norms are held under a line that falls to zero at ``stop``;
3. *refinement* (to ``steps``): redundant units are exactly zero and stay so; the rest trains on.

The budget is met exactly because the set is chosen in cost space before the penalty starts, by the same allocator and
cost model that `prune` uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from coppice.core.budget import BudgetLike, resolve
from coppice.core.config import Config
from coppice.core.errors import UsageError
from coppice.core.space import Floats, Space
from coppice.core.tensors import refresh
from coppice.passes.prune.allocate import allocate
from coppice.passes.train.units import UnitIndex

DEFAULTS = {"sgd": (1e-3, 2.0, 10.0), "adam": (1e-2, 20.0, 1e3)}
"""Penalty strength lambda0, amplification and cap of the dual step, by kind of base optimizer (OTOv2, appendix)."""

ALIGNMENT = 0.8
"""How far the cosine of a unit and its gradient moves its saliency (docs/decisions/0003-saliency-sign.md)."""


class DHSPG(torch.optim.Optimizer):
    """A wrapper around any base optimizer over the parameters of ``space.graph``'s model.

    ``budget`` is met exactly at step ``stop``; ``start`` and ``stop`` are fractions of ``steps``. ``config()`` gives
    the config to extract. Learning-rate schedulers take this object as they would the base optimizer, and
    ``state_dict`` holds both. Deterministic: the same gradients give the same decisions.

    Raises `UsageError` where ``base`` does not train the graph's parameters, `BudgetError` for a budget out of reach.
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
    ) -> None:
        if not isinstance(base, torch.optim.Optimizer):
            raise UsageError(f"base is a {type(base).__name__}", place="DHSPG", remedy="pass an optimizer instance")
        if not (
            isinstance(steps, int) and steps >= 3 and 0 <= start < stop <= 1 and int(start * steps) < int(stop * steps)
        ):
            raise UsageError(
                f"steps={steps}, start={start}, stop={stop} leave no step for the penalty",
                place="DHSPG",
                remedy="give the number of optimizer steps of the whole training, and 0 <= start < stop <= 1",
            )
        self.space, self.base, self.budget = space, base, resolve(budget, space)
        refresh(space.graph)
        self._check_parameters()
        super().__init__([{"params": list(g["params"])} for g in base.param_groups], dict(base.defaults))
        self.param_groups = base.param_groups  # one list: schedulers that change it change the base
        self.steps, self.start, self.stop = steps, int(start * steps), int(stop * steps)
        self.epsilon = epsilon
        kind = "sgd" if isinstance(base, torch.optim.SGD) else "adam"
        self.strength, self.amplify, self.cap = penalty or DEFAULTS[kind]
        self.count = 0
        self._all = UnitIndex(space, np.concatenate([f.classes for f in space.families] or [np.zeros(0, np.int64)]))
        self._align = torch.zeros(self._all.count, dtype=torch.float64)
        self._config: Config | None = None
        self._redundant: UnitIndex | None = None
        self._zeroed = torch.zeros(0, dtype=torch.bool)
        self._norms = torch.zeros(0, dtype=torch.float64)

    # ---- the training loop's side ----------------------------------------------------------------------------------

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the base optimizer, then the stage's work on redundant units. Returns the closure's loss."""
        if self._redundant is None and self.count >= self.start:
            self._partition()
        if self._redundant is None:
            loss = self.base.step(closure)
            self._watch()
        else:
            before = self._redundant.gather(self._tensors)
            loss = self.base.step(closure)
            with torch.no_grad():
                self._penalise(self._redundant, before)
        self.count += 1
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "count"):
            raise UsageError(
                "parameters cannot join after the space was built",
                place="DHSPG.add_param_group",
                remedy="build the optimizer over all parameters, or train new ones with an optimizer of their own",
            )
        super().add_param_group(param_group)

    def config(self) -> Config:
        """The units that stay; meets the budget at any time. Chooses them now if warm-up is not over yet."""
        if self._config is None:
            self._partition()
        assert self._config is not None
        return self._config

    @property
    def progress(self) -> dict[str, float]:
        """``step``, how many units are ``redundant``, and how many of them are exactly ``zero`` by now."""
        redundant = 0 if self._redundant is None else self._redundant.count
        return {"step": self.count, "redundant": redundant, "zero": int(self._zeroed.sum())}

    # ---- stages ----------------------------------------------------------------------------------------------------

    @property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return self.space.graph.tensors

    def _watch(self) -> None:
        """Average the cosine of each unit with its gradient over the warm-up."""
        grads = {n: t.grad for n, t in self._tensors.items() if t.grad is not None}
        index = self._all
        x = index.gather(self._tensors)
        g = [index.select(i, grads[s.name]) if s.name in grads else None for i, s in enumerate(index.slabs)]
        dot = index.sums(lambda i: None if (own := g[i]) is None else x[i] * own)
        size = index.sums(lambda i: x[i].square()) * index.sums(
            lambda i: None if (own := g[i]) is None else own.square()
        )
        self._align += dot / size.sqrt().clamp_min(1e-30)

    def saliency(self) -> dict[str, Floats]:
        """The unit's magnitude, less where its gradient already shrinks it.

        A positive cosine of x and its gradient means that descent already shrinks the unit, so it counts against it.
        """
        cosine = (self._align / max(self.count, 1)).numpy()
        sizes = self.space.magnitudes()
        result, at = {}, 0
        for family in self.space.families:
            own = cosine[at : at + family.size]
            at += family.size
            scale = sizes[family.name]
            result[family.name] = scale * (1.0 - ALIGNMENT * np.clip(own, -1, 1))
        return result

    def _partition(self) -> None:
        self._config = allocate(self.space, self.saliency(), self.budget)
        self._index_redundant()
        assert self._redundant is not None
        x = self._redundant.gather(self._tensors)
        self._norms = self._redundant.sums(lambda i: x[i].square()).sqrt()
        self._zeroed = torch.zeros(self._redundant.count, dtype=torch.bool)

    def _index_redundant(self) -> None:
        assert self._config is not None
        gone = []
        for family in self.space.families:
            stays = np.zeros(family.size, bool)
            stays[list(self._config[family.name])] = True
            gone.append(family.classes[~stays])
        self._redundant = UnitIndex(self.space, np.concatenate(gone or [np.zeros(0, np.int64)]))

    def _penalise(self, index: UnitIndex, before: list[torch.Tensor]) -> None:
        """The dual half-space step on redundant units (OTOv2, algorithm 2), then the falling norm and the mask."""
        after = index.gather(self._tensors)
        norm2 = index.sums(lambda i: before[i].square())
        move = index.sums(lambda i: before[i] * (after[i] - before[i]))
        move2 = index.sums(lambda i: (after[i] - before[i]).square())
        rate = max(float(group["lr"]) for group in self.param_groups)
        shrink = rate * self._lambda(norm2, move, move2, max(rate, 1e-30)) / norm2.sqrt().clamp_min(1e-30)
        trial = [a - index.per_unit(shrink, i, a) * b for i, (a, b) in enumerate(zip(after, before, strict=True))]
        zero = self._zeroed | (norm2 == 0)
        if self.count >= (self.start + self.stop) // 2:
            inner = index.sums(lambda i: trial[i] * before[i])
            zero = zero | (inner <= self.epsilon * norm2)
        left = max(self.stop - 1 - self.count, 0) / max(self.stop - self.start, 1)
        size = index.sums(lambda i: trial[i].square()).sqrt()
        scale = torch.minimum(torch.ones_like(size), self._norms * left / size.clamp_min(1e-30))
        self._zeroed = zero | (left == 0)
        scale[self._zeroed] = 0.0
        index.write(self._tensors, [t * index.per_unit(scale, i, t) for i, t in enumerate(trial)])
        index.zero(self._tensors, self._zeroed)
        self._forget(index)

    def _lambda(self, norm2: torch.Tensor, move: torch.Tensor, move2: torch.Tensor, rate: float) -> torch.Tensor:
        """lambda per unit, so that the penalised step still descends where the unit's own step would grow it."""
        norm, xv, v2 = norm2.sqrt(), -move / rate, move2 / rate**2
        low = -xv / norm.clamp_min(1e-30)
        high = torch.where(xv < 0, -v2 * norm / xv.clamp_max(-1e-30), torch.full_like(xv, torch.inf))
        wanted = (self.amplify * low).clamp(self.strength, self.cap * self.strength)
        wanted = torch.where(wanted >= high, (low + high) / 2, wanted)
        return torch.where(xv < 0, wanted, torch.full_like(xv, self.strength))

    def _forget(self, index: UnitIndex) -> None:
        """Momenta and second moments of zeroed units, whatever ``base`` calls them, are zeroed with them."""
        states = {name: self.base.state.get(self._tensors[name], {}) for name in index.names}
        for key in {key for state in states.values() for key in state}:
            held = {name: state.get(key) for name, state in states.items()}
            moments = {
                name: moment
                for name, moment in held.items()
                if isinstance(moment, torch.Tensor) and moment.shape == self._tensors[name].shape
            }
            index.zero(moments, self._zeroed)

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state and ours: plain numbers, lists and tensors, safe for ``weights_only`` loading."""
        return {
            "base": self.base.state_dict(),
            "space": self._fingerprint(),
            "count": self.count,
            "align": self._align.clone(),
            "config": None if self._config is None else {n: list(u) for n, u in self._config.keep},
            "zeroed": self._zeroed.clone(),
            "norms": self._norms.clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; `UsageError` for a state of another space or schedule."""
        if "space" not in state_dict or state_dict["space"] != self._fingerprint():
            raise UsageError(
                "the state belongs to another model, space or schedule",
                place="DHSPG.load_state_dict",
                remedy="build the optimizer with the same model, space options, budget and steps as when it was saved",
            )
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups
        self.count = int(state_dict["count"])
        self._align = state_dict["align"].clone()
        self._config = None if state_dict["config"] is None else Config.of(state_dict["config"])
        self._redundant = None
        if self._config is not None:
            self._index_redundant()
        self._zeroed, self._norms = state_dict["zeroed"].clone(), state_dict["norms"].clone()

    def _fingerprint(self) -> list[Any]:
        families = [[f.name, f.size] for f in self.space.families]
        return [families, [list(limit) for limit in self.budget.limits], self.steps, self.start, self.stop]

    def _check_parameters(self) -> None:
        trained: set[int] = {id(p) for group in self.base.param_groups for p in group["params"]}
        owned = {name: t for name, t in self.space.graph.parameters().items() if t.requires_grad}
        strangers = [name for name, t in owned.items() if id(t) not in trained]
        if owned and len(strangers) == len(owned):
            raise UsageError(
                f"base trains none of the graph's {len(owned)} parameters (first: {strangers[0]})",
                place="DHSPG",
                remedy="build base from the very model that was traced: torch.optim.AdamW(model.parameters())",
            )
