"""Families of interchangeable units, what is frozen, and the space of configs over them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from coppice.core.config import Config
from coppice.core.cost import CostModel
from coppice.core.errors import UsageError
from coppice.core.graph import Graph
from coppice.core.labels import Axis, Ids, Label
from coppice.core.names import unknown_name
from coppice.core.segments import Segments
from coppice.core.solve import Bools, Solution

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Slice:
    """One axis of one tensor that a family cuts; ``masked`` says whether removed units are also zeroed there."""

    tensor: str
    axis: int
    role: str
    masked: bool
    per_unit: int = 1
    """How many positions of the axis leave with one unit (a head takes its whole run of channels)."""

    def __str__(self) -> str:
        return f"{self.tensor}[{self.role}]"


@dataclass(frozen=True, eq=False)
class Family:
    """Interchangeable units. ``classes[i]`` is unit i's class in the solution; ``slices`` are all axes it touches.

    ``minimum`` units at least stay. ``round_to`` counts positions along the axes that the family cuts: channels, of
    which a head holds many, so that widths are multiples of ``step`` units (or all units).
    """

    name: str
    classes: Ids
    slices: tuple[Slice, ...]
    minimum: int = 1
    maximum: int = 0
    round_to: int = 1

    @property
    def size(self) -> int:
        return len(self.classes)

    @property
    def step(self) -> int:
        """The smallest number of units that changes every axis by a multiple of ``round_to``."""
        return max((self.round_to // math.gcd(self.round_to, s.per_unit) for s in self.slices), default=1)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """The allowed numbers of units, ascending."""
        top = self.maximum or self.size
        allowed = [n for n in range(self.step, top + 1, self.step) if n >= self.minimum]
        return tuple(sorted({*allowed, top}))

    def at_most(self, width: float) -> int:
        """The largest allowed width not above ``width``, or the smallest allowed one."""
        below = [n for n in self.widths if n <= width + 1e-9]
        return below[-1] if below else self.widths[0]

    def __repr__(self) -> str:
        return f"Family({self.name!r}, size={self.size}, slices=[{', '.join(map(str, self.slices))}])"


@dataclass(frozen=True)
class Frozen:
    """An axis of a parameter none of whose units can leave (or, with ``count``, some of them), and why."""

    axis: str
    reason: str
    source: str
    size: int
    count: int
    remedy: str = ""
    node: str = ""

    def __str__(self) -> str:
        part = "" if self.count == self.size else f" ({self.count} of {self.size})"
        return f"{self.axis}{part}: {self.reason}" + (f" at {self.source}" if self.source else "")


@dataclass(frozen=True, eq=False)
class Space:
    """The decisions over one graph: how many, and which, units of each family stay.

    ``tensor_axes[name][k]`` are the variables along axis k of a tensor; ``masked`` marks those whose slices are zeroed
    with their unit. Everything is stamped with the graph's version and refuses to work on a changed graph.
    """

    graph: Graph
    version: int
    families: tuple[Family, ...]
    frozen: tuple[Frozen, ...]
    solution: Solution
    tensor_axes: Mapping[str, tuple[Ids | None, ...]]
    masked: Bools
    leaves: Ids
    """int[classes, depth]: the leaf classes whose removal removes a class, padded with -1."""
    segments: Segments
    costs: CostModel
    labels: Mapping[fx.Node, Label | tuple[Label, ...]]
    folds: Mapping[fx.Node, Axis] = field(default_factory=dict)
    """Calls whose bias takes over constants, and the axis that holds them (`coppice.core.labels.Flow.folds`)."""
    residual: str = "exact"
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {family.name: family for family in self.families})

        self.graph.spaces.setdefault(self.fingerprint, self)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the families and segments: the same for the same model and options."""
        families = [(f.name, f.size, f.widths, [(s.tensor, s.axis) for s in f.slices]) for f in self.families]
        text = repr((families, [segment.name for segment in self.segments]))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def family(self, name: str) -> Family:
        """The family called ``name``; `UsageError` with the nearest name where there is none."""
        by_name: dict[str, Family] = self._by_name  # type: ignore[attr-defined]
        if name not in by_name:
            raise unknown_name("family", name, by_name)
        return by_name[name]

    # ---- configs -------------------------------------------------------------------------------------------------

    def full(self) -> Config:
        """The config that keeps every unit."""
        return Config.of({f.name: range(f.size) for f in self.families}, self.fingerprint)

    def uniform(self, ratio: float) -> Config:
        """Keep about ``ratio`` of each family (0 < ratio <= 1): the units with the largest weights."""
        if not 0 < ratio <= 1:
            raise UsageError(f"ratio is {ratio}", place="uniform", remedy="give the fraction to keep, 0 < ratio <= 1")
        return self.with_widths({f.name: f.at_most(max(ratio * f.size, 1)) for f in self.families})

    def random(self, seed: int = 0, *, erase: float = 0.0) -> Config:
        """A random allowed width for each family and random units of that number; the same for the same seed.

        Each segment is erased with probability ``erase``, in random order, unless that would leave no valid graph.
        """
        rng = np.random.default_rng(seed)
        keep = {}
        for family in self.families:
            width = int(rng.choice(family.widths))
            keep[family.name] = sorted(rng.choice(family.size, size=width, replace=False).tolist())
        wanted = [k for k in rng.permutation(len(self.segments)).tolist() if rng.random() < erase]
        skip = [self.segments[k].name for k, _ in self.segments.walk(wanted)]
        return self.check(Config.of(keep, self.fingerprint, skip))

    def erase(self, *names: str) -> Config:
        """The config that keeps every unit and erases the named segments; `UsageError` where that is no model."""
        return self.check(Config.of({}, self.fingerprint, names))

    def with_widths(self, widths: Mapping[str, int], order: Mapping[str, Floats] | None = None) -> Config:
        """Keep the ``widths[name]`` best units by ``order`` (scores, default: weight magnitude); all where unnamed."""
        keep: dict[str, object] = {}
        scores = order if order is not None else self.magnitudes()
        for family in self.families:
            width = widths.get(family.name, family.size)
            ranked = np.argsort(-np.asarray(scores[family.name]), kind="stable")
            keep[family.name] = np.sort(ranked[:width]).tolist()
        for name in widths:
            self.family(name)
        return self.check(Config.of(keep))

    def magnitudes(self) -> dict[str, Floats]:
        """Per family, each unit's share of squared norm, summed over the tensors it has masked slices in.

        Shares make layers comparable, and a unit tied through many layers counts in each. On meta tensors, which have
        no values, units rank in their order.
        """
        if self.graph.is_meta:
            return {f.name: -np.arange(f.size, dtype=np.float64) for f in self.families}
        squares = {name: t.detach().abs().double() ** 2 for name, t in self.graph.parameters().items()}
        shares = self.unit_sums({name: square / square.sum().clamp_min(1e-30) for name, square in squares.items()})
        return {f.name: shares[f.classes] for f in self.families}

    def unit_sums(self, tensors: Mapping[str, torch.Tensor]) -> Floats:
        """Sum ``tensors`` (shaped like the graph's) over each unit's masked slices; float64[classes], leaves only."""
        total = np.zeros(len(self.leaves))
        for name, tensor in tensors.items():
            for k, ids in enumerate(self.tensor_axes.get(name, ())):
                if ids is None or not self.masked[ids].any():
                    continue
                others = [d for d in range(tensor.ndim) if d != k]
                sums = (tensor.sum(dim=others) if others else tensor).detach().double().cpu().numpy()
                for column in self.leaves[self.solution.class_of[ids]].T:
                    hit = (column >= 0) & self.masked[ids]
                    np.add.at(total, column[hit], sums[hit])
        return total

    def check(self, config: Config) -> Config:
        """Fill in families that ``config`` leaves out, and raise `UsageError` for units or widths it may not hold.

        What an erased segment takes along is no decision any more: segments inside it are left out of ``skip``, and
        families of which nothing is left keep all units.
        """
        keep: dict[str, object] = {}
        if config.space not in ("", self.fingerprint):
            raise UsageError(
                "the config was made in another space",
                place=self.graph.name,
                remedy="use it with the space it came from, or rebuild that space with the same model and options",
            )
        for name in config:
            self.family(name)
        for family in self.families:
            units = config.get(family.name, tuple(range(family.size)))
            if units and (min(units) < 0 or max(units) >= family.size):
                raise UsageError(
                    f"unit {max(units)} does not exist; the family has {family.size}", place=f"family {family.name}"
                )
            if len(units) < min(family.minimum, family.size):
                raise UsageError(
                    f"keeps {len(units)} of {family.size} units, fewer than {family.minimum}",
                    place=f"family {family.name}",
                    remedy="keep at least one unit: a layer of width zero is not a model",
                )
            keep[family.name] = units
        skip = self.segments.check(config.skip)
        for family in self._gone_with(skip):
            keep[family.name] = range(family.size)
        return Config.of(keep, self.fingerprint, skip)

    def _gone_with(self, skip: Sequence[str]) -> Iterator[Family]:
        """The families that have no slice left once the segments are erased."""
        if skip:
            dead = self.dead_tensors(skip)
            taken = {f for name in skip for f in self.segments.named(name).families}
            for f, family in enumerate(self.families):
                if f in taken or all(s.tensor in dead for s in family.slices):
                    yield family

    # ---- what a config means -----------------------------------------------------------------------------------------

    def removed(self, config: Config) -> Bools:
        """bool[classes]: what leaves under ``config``."""
        self.graph.expect(self.version, "this space")
        gone = np.zeros(self.solution.size, bool)
        for family in self.families:
            stays = np.zeros(family.size, bool)
            stays[list(config[family.name])] = True
            gone[family.classes[~stays]] = True
        for name in config.skip:
            gone[self.segments.named(name).classes] = True
        return self.solution.spread(gone)

    def live(self, skip: Iterable[str]) -> Bools:
        """bool[rules]: what of `Segments.liveness` is still needed once the segments are erased."""
        result: Bools = self.segments.liveness.evaluate(self.segments.erased(skip)[None])[0]
        return result

    def dead_tensors(self, skip: Iterable[str]) -> set[str]:
        """The tensors that nothing needs once the segments are erased."""
        live = self.live(skip)
        return {name for name, rule in self.segments.liveness.tensors.items() if not live[rule]}

    def keep_masks(self, config: Config) -> dict[str, tuple[Bools | None, ...]]:
        """Per tensor and axis, which positions stay (None: all)."""
        gone = self.removed(config)
        return {
            name: tuple(None if ids is None else ~gone[self.solution.class_of[ids]] for ids in axes)
            for name, axes in self.tensor_axes.items()
        }

    def zero_masks(self, config: Config) -> dict[str, tuple[Bools | None, ...]]:
        """Per tensor and axis, which positions the masked model zeroes (None: none of the axis)."""
        gone = self.removed(config)
        result: dict[str, tuple[Bools | None, ...]] = {}
        for name, axes in self.tensor_axes.items():
            zero = [None if ids is None else gone[self.solution.class_of[ids]] & self.masked[ids] for ids in axes]
            result[name] = tuple(z if z is not None and z.any() else None for z in zero)
        return result

    def masked_tensors(self, config: Config) -> dict[str, torch.Tensor]:
        """The full model's tensors with the slices of removed units set to zero; untouched ones are not copied.

        Parameters that only erased segments need are zero, too.
        """
        result = dict(self.graph.tensors)
        dead = self.dead_tensors(config.skip) if config.skip else set()
        for name in dead:
            if isinstance(result[name], nn.Parameter):
                result[name] = nn.Parameter(torch.zeros_like(result[name]), result[name].requires_grad)
        for name, axes in self.zero_masks(config).items():
            if name in dead:
                continue
            for k, zero in enumerate(axes):
                if zero is None:
                    continue
                if result[name] is self.graph.tensors[name]:
                    result[name] = result[name].detach().clone()
                where = torch.from_numpy(np.flatnonzero(zero)).to(result[name].device)
                result[name].index_fill_(k, where, 0.0)
            original = self.graph.tensors[name]
            if isinstance(original, nn.Parameter) and result[name] is not original:
                result[name] = nn.Parameter(result[name], original.requires_grad)
        return result

    def axis_keep(self, axis: Axis, gone: Bools) -> Bools:
        """bool[size]: which positions of a value's axis stay when the classes ``gone`` leave."""
        keep = np.ones(1, bool)
        for factor in axis:
            own = np.ones(factor.size, bool) if factor.ids is None else ~gone[self.solution.class_of[factor.ids]]
            keep = (keep[:, None] & own[None, :]).reshape(-1)
        return keep

    def cost(
        self, configs: Config | list[Config] | npt.NDArray[np.int64], skip: Iterable[str] = ()
    ) -> dict[str, Floats]:
        """Costs ``params``, ``macs`` and ``bytes`` of configs, each float64[n] in the order given.

        ``configs`` is one config, several, or an int array [n, families] of widths in the order of ``families``; an
        array says nothing of segments, so those of ``skip`` are erased in all of its rows.
        """
        self.graph.expect(self.version, "this space")
        if isinstance(configs, Config):
            configs = [configs]
        if isinstance(configs, list):
            widths = np.array([[len(c[f.name]) for f in self.families] for c in configs]).reshape(len(configs), -1)
            erased = np.array([self.segments.erased(c.skip) for c in configs]).reshape(len(configs), -1)
            return self.costs.evaluate(widths, erased)
        return self.costs.evaluate(configs, self.segments.erased(skip)[None])

    def cost_without_each(self) -> dict[str, Floats]:
        """Costs of the full model with one segment erased, each float64[segments]."""
        widths = np.array([[f.size for f in self.families]], np.int64)
        alone = np.eye(len(self.segments), dtype=bool)
        return self.costs.evaluate(np.repeat(widths, len(alone), axis=0), alone)

    def without(self, skip: Iterable[str]) -> Space:
        """The same space with the costs of what is left once the segments are erased for good."""
        return replace(self, costs=self.costs.after(self.segments.erased(skip)))
