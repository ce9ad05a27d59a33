"""The engine of all sparse optimizers: schedule, choice, zeros, state. What shrinks units, and which, subclasses say.

Three stages, counted in optimizer steps of ``steps`` in all:

1. *warm-up* (to ``start``): the base optimizer alone; measurements of the units are averaged;
2. *shrinking* (to ``stop``): the allocator has picked the redundant units whose removal meets the budget, and no more;
   they are pushed to zero and reach it at ``stop``;
3. *refinement* (to ``steps``, and on): redundant units are exactly zero and stay so; the rest trains on.

The budget is met exactly because the units are chosen in cost space, by the same allocator and cost model that `prune`
uses. A unit that has become zero is zero after every step, with its running statistics. Its optimizer moments are
cleared when it becomes zero and at every step that works on units. Such steps come at strides in long stages, so that a
training step costs little more than the base optimizer's (docs/decisions/0007-training-engine.md).

**Weight decay** is the base optimizer's own, coupled or decoupled, and acts on every unit once per step as it would
without coppice; strides do not multiply it. Saliency is measured on the gradient of the loss, without decay, which
would make every unit look as if training shrank it. A unit that is zero has nothing to decay.

**Several ranks** (DDP, FSDP2) compare model, space, schedule and step before anything is decided, add up what they
measure over their shards, and take the choice of rank 0.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from coppice.core.budget import Budget, BudgetLike, resolve
from coppice.core.config import Config
from coppice.core.errors import UsageError
from coppice.core.space import Floats, Space
from coppice.core.tensors import as_sharded, check_finite, local, refresh
from coppice.passes.prune.allocate import allocate
from coppice.passes.train.live import LiveTensors, finite, same_names
from coppice.passes.train.ranks import Ranks
from coppice.passes.train.schedule import Schedule
from coppice.passes.train.state import check_facts, facts_of, packed, unpacked
from coppice.passes.train.units import Parts, UnitIndex
from coppice.passes.train.wrapper import WrappedOptimizer, check_base, evaluated
from coppice.passes.train.zeros import Zeros

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PruningOptimizer(WrappedOptimizer, ABC):
    """A wrapper around any base optimizer over the parameters of ``space.graph``'s model.

    ``budget`` is met exactly at step ``stop``; ``start`` and ``stop`` are fractions of ``steps``. `config` gives the
    config to extract. Learning-rate schedulers take this object as they would the base optimizer, whose
    ``param_groups`` and ``state`` are its own; ``state_dict`` holds both. A step whose gradients are not all numbers
    is skipped: it changes nothing, does not count, and shows in `progress`. Deterministic: the same gradients give the
    same decisions. ``group`` are the ranks that train this model together (default: all).

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
        group: ProcessGroup | None = None,
    ) -> None:
        self._own = type(self).__name__
        check_base(base, self._own)
        self.schedule = Schedule.of(steps, start, stop, self._own)
        self.space, self.budget = space, self._resolve(budget, space)
        self._live = LiveTensors(space.graph)
        self._now: dict[str, torch.Tensor] | None = None
        if any(as_sharded(t) is not None for t in self._tensors.values()):
            check_finite((name, local(t)) for name, t in self._tensors.items())
        else:
            refresh(space.graph)
        super().__init__(base)
        self._check_parameters()
        self._ranks = Ranks(group)
        self._joined = False
        self._all: UnitIndex | None = None
        self.count = self.skipped = 0
        self._measured, self._made = 0, 0
        self._sums: dict[str, torch.Tensor] = {}
        self._config: Config | None = None
        self._redundant: UnitIndex | None = None
        self._norms = torch.zeros(0, dtype=torch.float64)
        self._zeroed = torch.zeros(0, dtype=torch.bool)
        self._zeros: Zeros | None = None

    # ---- what a method decides -------------------------------------------------------------------------------------

    @abstractmethod
    def saliency(self) -> dict[str, Floats]:
        """The importance of each unit, by family, from what was measured so far. Higher stays longer; none below 0."""

    @abstractmethod
    def _measure(self, index: UnitIndex, x: Parts, g: Parts) -> dict[str, torch.Tensor]:
        """float64[units] by name, to be averaged: from the slices of weights and of the loss's gradients."""

    @abstractmethod
    def _push(self, index: UnitIndex, before: Sequence[torch.Tensor], stride: int) -> torch.Tensor:
        """Push redundant units towards zero after a step of the base; bool[units]: which are to be zero from now on.

        Called every ``stride`` steps, and at ``stop - 1``, where all must become zero.
        """

    def _before(self, index: UnitIndex) -> Sequence[torch.Tensor]:
        """What `_push` needs to know of the units before the base's step."""
        return ()

    def _points(self) -> tuple[int, ...]:
        """The steps before which units are chosen; each choice is part of the next one's."""
        return (self.start,)

    def _resolve(self, budget: BudgetLike, space: Space) -> Budget:
        """The limits in absolute cost; `BudgetError` where the method cannot meet them."""
        return resolve(budget, space)

    def _choose(self) -> Config:
        """The units that stay, by what is known at a point."""
        return allocate(self.space, self.saliency(), self.budget)

    def _preview(self) -> Config:
        """The last point's choice, were it made now."""
        return self._choose()

    def _index(self, config: Config) -> UnitIndex:
        """The slices that ``config`` zeroes."""
        gone = [np.delete(f.classes, list(config[f.name])) for f in self.space.families]
        return UnitIndex(self.space, np.concatenate([np.zeros(0, np.int64), *gone]), live=self._tensors)

    def _enter(self) -> None:
        """Before anything is measured or chosen in a step that will happen."""

    def _leave(self) -> None:
        """After a step has happened and was counted."""

    def _options(self) -> dict[str, Any]:
        """Settings that a checkpoint must share, JSON values."""
        return {}

    def _extra(self) -> dict[str, Any]:
        """What else the method must remember, JSON values and tensors; given back to `_restore`."""
        return {}

    def _restore(self, extra: Mapping[str, Any]) -> None:
        """Take back what `_extra` gave."""

    # ---- the training loop's side ----------------------------------------------------------------------------------

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the base optimizer, then the stage's work on redundant units. Returns the closure's loss."""
        loss, again = evaluated(closure)
        self._join()
        self._now = self._live.now()
        try:
            self._step(again)
        finally:
            self._now = None
        return loss

    def _step(self, closure: Callable[[], float] | None) -> None:
        parameters = self._parameters()
        device = local(parameters[0]).device if parameters else torch.device("cpu")
        due = self._due()
        if not self._ranks.proceed(finite(parameters, due), self.count, device, self._own):
            self._skip()
            return
        with torch.no_grad():
            self._enter()
            self._look(due)
            index = self._redundant
            before = self._before(index) if index is not None and due else ()
        self.base.step(closure) if closure is not None else self.base.step()
        with torch.no_grad():
            if index is not None:
                self._shrink(index, before, due)
            self.count += 1
            self._leave()

    def config(self) -> Config:
        """The units that stay; meets the budget at any time.

        Before the choice is complete: what it would be now, which changes nothing. Before ``stop`` a warning says what
        remains; a subnet extracted then computes what the masked model does, but training has not prepared it yet.
        With sharded parameters every rank must call this.
        """
        if self.count < self.stop:
            left = self.progress
            warnings.warn(
                f"{self._own} is at step {self.count} of {self.stop}: {left['zero']} of {left['redundant']} redundant "
                f"units chosen so far are zero. extract() cuts the rest as if they were; train {left['remaining']} "
                f"steps more, or give fewer steps, for a subnet that equals the trained model",
                stacklevel=2,
            )
        if self._config is not None and self._made == len(self._points()):
            return self._config
        with torch.no_grad():
            return self._preview()

    def mask(self, module: nn.Module) -> None:
        """Set the units that are zero by now to zero in a copy of the model, such as an EMA (`AveragedModel`).

        An average of weights trails behind the weights; call this after ``ema.update_parameters(model)``, or once at
        the end, and the config applies to the average too.
        """
        if self._redundant is not None:
            with torch.no_grad():
                self._redundant.zero(same_names(module, self._tensors), self._zeroed)

    @property
    def progress(self) -> dict[str, float]:
        """``step``; how many units are ``redundant``, and of them exactly ``zero``; how many steps were ``skipped``;
        how many steps ``remaining`` until all redundant units are zero.
        """
        redundant = 0 if self._redundant is None else self._redundant.count
        remaining = max(self.stop - self.count, 0)
        return {
            "step": self.count,
            "redundant": redundant,
            "zero": int(self._zeroed.sum()),
            "skipped": self.skipped,
            "remaining": remaining,
        }

    @property
    def steps(self) -> int:
        return self.schedule.steps

    @property
    def start(self) -> int:
        return self.schedule.start

    @property
    def stop(self) -> int:
        return self.schedule.stop

    # ---- stages ----------------------------------------------------------------------------------------------------

    @property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return self._live.now() if self._now is None else self._now

    def _end(self) -> int:
        """The step before which the present stage's work must be done; strides are counted back from it."""
        ahead = [point for point in (*self._points(), self.stop) if point > self.count]
        return ahead[0] if ahead else self.schedule.stage(self.count)[1]

    def _due(self) -> bool:
        return (self._end() - 1 - self.count) % self.schedule.stride(self.count) == 0

    def _look(self, due: bool) -> None:
        """Measure where it is time to; choose where it is time to."""
        points = self._points()
        choose = self._made < len(points) and self.count >= points[self._made]
        if choose and self._measured:
            self._decide()
            choose = False
        if self._made < len(points) and (choose or due):
            self._observe()
        if choose:
            self._decide()

    def _observe(self) -> None:
        index = self._every
        measured = self._measure(index, index.look(dict(self._tensors)), index.look(self._gradients(index.names)))
        for key, values in measured.items():
            self._sums[key] = self._sums[key] + values if key in self._sums else values
        self._measured += 1

    def _gradients(self, names: Iterable[str]) -> dict[str, torch.Tensor | None]:
        """The gradient of the loss with respect to each tensor, dense; None where it has none."""
        tensors = self._tensors
        signs = {id(p): -1.0 if g.get("maximize") else 1.0 for g in self.param_groups for p in g["params"]}
        grads: dict[str, torch.Tensor | None] = {}
        for name in names:
            grad = tensors[name].grad
            grad = grad.to_dense() if grad is not None and grad.is_sparse else grad
            grads[name] = -grad if grad is not None and signs.get(id(tensors[name]), 1.0) < 0 else grad
        return grads

    def _decide(self) -> None:
        self._take(self._ranks.first(self._choose()))
        assert self._redundant is not None
        self._norms = self._redundant.squares(self._redundant.look(dict(self._tensors))).sqrt()
        self._zeroed = self._norms == 0
        self._zeros = None
        self._made += 1

    def _take(self, config: Config) -> None:
        self._config = config
        self._redundant = self._index(config)

    def _shrink(self, index: UnitIndex, before: Sequence[torch.Tensor], due: bool) -> None:
        """The method's push, where it is due; then what is zero is zero again."""
        tensors = self._tensors
        if due:
            if self.count < self.stop:
                zeroed = self._ranks.first(self._push(index, before, self.schedule.stride(self.count)))
                if not torch.equal(zeroed, self._zeroed):
                    self._zeroed, self._zeros = zeroed, None
            self._forget(index)
        if self._zeros is None:
            self._zeros = Zeros(index, self._zeroed)
        self._zeros.apply(tensors, often=True)

    def _forget(self, index: UnitIndex) -> None:
        """Momenta and second moments of zeroed units, whatever ``base`` calls them, are zeroed with them."""
        tensors = self._tensors
        states = {name: self.base.state.get(tensors[name], {}) for name in index.names}
        for key in {key for state in states.values() for key in state}:
            held = {name: state.get(key) for name, state in states.items()}
            moments = {
                name: moment
                for name, moment in held.items()
                if isinstance(moment, torch.Tensor) and moment.ndim and moment.shape == tensors[name].shape
            }
            index.zero(moments, self._zeroed)

    def _skip(self) -> None:
        if not self.skipped:
            warnings.warn(
                f"{self._own}: a gradient is NaN or infinite at step {self.count}; the step is skipped and does not "
                f"count (progress['skipped'] counts such steps; this is said once)",
                stacklevel=5,
            )
        self.skipped += 1

    # ---- measurements ----------------------------------------------------------------------------------------------

    @property
    def _every(self) -> UnitIndex:
        """All units of all families, in their order."""
        if self._all is None:
            classes = np.concatenate([np.zeros(0, np.int64), *(f.classes for f in self.space.families)])
            self._all = UnitIndex(self.space, classes, live=self._tensors)
        return self._all

    def _average(self, key: str) -> Floats:
        """float64[units]: the average of what `_measure` called ``key``; 0 before anything was measured."""
        total = self._sums.get(key, torch.zeros(self._every.count, dtype=torch.float64))
        return (total / max(self._measured, 1)).numpy()

    def _by_family(self, values: Floats) -> dict[str, Floats]:
        ends = np.cumsum([f.size for f in self.space.families])
        return {f.name: values[end - f.size : end] for f, end in zip(self.space.families, ends, strict=True)}

    # ---- agreement and state ---------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Before the first step: the model may have been sharded since this was built, and ranks must agree."""
        if self._joined:
            return
        self._live = LiveTensors(self.space.graph)
        self._check_parameters()
        self._all = None
        if self._config is not None:
            self._index_again()
        self._ranks.compare({**self._facts(), "step": self.count}, self._own)
        self._joined = True

    def _index_again(self) -> None:
        assert self._config is not None
        self._take(self._config)
        self._zeros = None

    def _facts(self) -> dict[str, Any]:
        limits = [list(limit) for limit in self.budget.limits]
        schedule = [self.steps, self.start, self.stop]
        return facts_of(self._own, self.base, self.space, limits, schedule, self._options())

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under ``"pruning"`` ours: plain numbers, text and tensors, safe for
        ``weights_only`` loading. Of a sharded model, use `coppice.passes.train.sharded.ShardedState`."""
        return {**self.base.state_dict(), "pruning": self.pruning_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; `UsageError` for a state of another model, space or schedule."""
        if "pruning" not in state_dict:
            raise UsageError(
                "the state holds no choice of units: it is another optimizer's",
                place=f"{self._own}.load_state_dict",
                remedy=f"load what {self._own}.state_dict() gave, or load this state into base before wrapping it",
            )
        self.check_state(state_dict["pruning"])
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "pruning"})
        self.load_pruning_state(state_dict["pruning"])

    def pruning_state(self) -> dict[str, Any]:
        """What `state_dict` adds to the base optimizer's state; the same on every rank."""
        numbers = {"count": self.count, "skipped": self.skipped, "measured": self._measured, "made": self._made}
        vectors = {"norms": self._norms, "zeroed": self._zeroed}
        sums = {f"sum {key}": values for key, values in self._sums.items()}
        return packed(self._facts(), self._config, {**numbers, **vectors, **sums, **self._extra()})

    def load_pruning_state(self, state: Mapping[str, Any]) -> None:
        """Take back `pruning_state`, the base optimizer's state being loaded already."""
        self.check_state(state)
        config, values = unpacked(state)
        self.count, self.skipped = int(values["count"]), int(values["skipped"])
        self._measured, self._made = int(values["measured"]), int(values["made"])
        self._sums = {key[4:]: value for key, value in values.items() if key.startswith("sum ")}
        self._norms, self._zeroed = values["norms"], values["zeroed"]
        self._config, self._redundant, self._zeros = None, None, None
        if config is not None:
            self._config = self.space.check(config)
            self._index_again()
        self._restore(values)
        self._joined = False

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `UsageError` that says in what a `pruning_state` is of another model, space, schedule or version."""
        check_facts(state, self._facts(), self._own)

    def _check_parameters(self) -> None:
        trained: set[int] = {id(p) for group in self.base.param_groups for p in group["params"]}
        owned = {name: t for name, t in self._tensors.items() if isinstance(t, nn.Parameter) and t.requires_grad}
        strangers = [name for name, t in owned.items() if id(t) not in trained]
        if owned and len(strangers) == len(owned):
            raise UsageError(
                f"base trains none of the graph's {len(owned)} parameters (first: {strangers[0]})",
                place=self._own,
                remedy="build base from the very model that was traced: torch.optim.AdamW(model.parameters()); "
                "shard a model before that",
            )
