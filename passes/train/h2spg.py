"""H2SPG: whole segments are erased, and channels pruned beside them, in one training run (Chen et al., OTOv3, 2023).

At the choice, candidate segments are walked in the order of what erasing them costs in loss for what it saves. Each is
erased tentatively and skipped where no valid graph would be left (`coppice.core.segments`). For every number of
segments so erased, the allocator meets the rest of the budget with units; the number whose total loss is estimated
least is taken. From then on the parameters of the erased segments are redundant units like any others, and `DHSPG`
takes them to zero.

The loss of a segment, and of a unit, is the mean over warm-up steps of |sum x g| over its parameters x with gradients
g: the first-order change of the loss without it (Molchanov et al., 2019). Saliency within a family is DHSPG's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import fx, nn

from coppice.core.budget import Budget, BudgetLike, resolve
from coppice.core.config import Config
from coppice.core.errors import UsageError
from coppice.core.labels import Ids
from coppice.core.solve import Bools
from coppice.core.space import Floats, Space
from coppice.passes.prune.allocate import allocate
from coppice.passes.train.dhspg import DHSPG
from coppice.passes.train.units import Parts, UnitIndex

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MOST = 32
"""How many numbers of erased segments are tried at most; of a longer walk, evenly spaced ones."""


class H2SPG(DHSPG):
    """Erases segments of ``space`` and prunes units to ``budget``; `PruningOptimizer` says what the arguments mean.

    ``erase`` is the largest part of the saved cost that erasing may bring: 0 prunes units alone, 1 leaves the choice
    to the estimated loss. ``keep`` names segments that stay. Only segments that zero parameters silence are erased
    (`silent`), so that the trained model itself computes what the subnet does; ``config().skip`` names them.
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
        erase: float = 1.0,
        keep: Sequence[str] = (),
        epsilon: float = 0.0,
        penalty: tuple[float, float, float] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        if not 0 <= erase <= 1:
            raise UsageError(f"erase is {erase}", place="H2SPG", remedy="give the largest part of the saving, 0 to 1")
        kept = [space.segments.number(name) for name in keep]
        self.erase = erase
        self.candidates = np.setdiff1d(np.flatnonzero(silent(space)), kept).astype(np.int64)
        super().__init__(
            space, base, budget, steps=steps, start=start, stop=stop, epsilon=epsilon, penalty=penalty, group=group
        )  # fmt: skip
        names = [name for k in self.candidates for name in space.segments[int(k)].tensors]
        parameters = space.graph.parameters()
        self._watched = [name for name in dict.fromkeys(names) if name in parameters]
        self._rows: UnitIndex | None = None

    def _resolve(self, budget: BudgetLike) -> Budget:
        saved = self._saves(self.space, resolve({"macs": 1.0}, self.space))
        walked = self.space.segments.walk(sorted(self.candidates.tolist(), key=lambda k: -saved[k]))
        skip = [self.space.segments[k].name for k, _ in walked] if self.erase else []
        return resolve(budget, self.space, skip)

    # ---- measurements ----------------------------------------------------------------------------------------------

    def _measure(self, index: UnitIndex, x: Parts, g: Parts) -> dict[str, torch.Tensor]:
        measured = super()._measure(index, x, g)
        rows = self._index_of_rows()
        along = rows.products(rows.look(dict(self._tensors)), rows.look(self._gradients(rows.names))).numpy()
        return {
            **measured,
            "effect": index.products(x, g).abs(),
            "erased": torch.from_numpy(np.abs([along[at].sum() for at in self._rows_of])),
        }

    def _index_of_rows(self) -> UnitIndex:
        """Every row of every tensor of every candidate."""
        if self._rows is None:
            self._rows = UnitIndex(self.space, np.zeros(0, np.int64), self._watched, self._tensors)
            sizes = [self._tensors[n].shape[0] if self._tensors[n].ndim else 1 for n in self._watched]
            ends = np.cumsum([0, *sizes])
            at = {n: np.arange(ends[k], ends[k + 1]) for k, n in enumerate(self._watched)}
            segments = [self.space.segments[int(k)] for k in self.candidates]
            none = [np.zeros(0, np.int64)]
            self._rows_of: list[Ids] = [
                np.concatenate([*none, *(at[n] for n in segment.tensors if n in at)]) for segment in segments
            ]
        return self._rows

    # ---- the choice ------------------------------------------------------------------------------------------------

    def _choose(self) -> Config:
        """The erasure, and the units beside it, that meet the budget at the least estimated loss."""
        saliency, effects = self.saliency(), self._by_family(self._average("effect"))
        best: tuple[float, Config] | None = None
        for erased, lost in self._erasures():
            config = self._beside(erased, saliency)
            if config is not None:
                loss = lost + sum(float(np.delete(effects[name], list(units)).sum()) for name, units in config.keep)
                best = min(best or (loss, config), (loss, config), key=lambda pair: pair[0])
        assert best is not None, "the walk to the end meets the budget, or resolve had refused it"
        return best[1]

    def _beside(self, erased: Bools, saliency: dict[str, Floats]) -> Config | None:
        """The config that erases these segments and meets the budget with units; None where that cannot be."""
        skip = tuple(self.space.segments[k].name for k in np.flatnonzero(erased))
        rest = self.space.without(skip)
        least = rest.cost(np.array([[f.widths[0] for f in rest.families]], np.int64))
        if any(float(least[metric][0]) > limit for metric, limit in self.budget.limits):
            return None
        config = allocate(rest, saliency, self.budget)
        return self.space.check(Config.of(dict(config.keep), skip=skip))

    def _erasures(self) -> list[tuple[Bools, float]]:
        """What is erased after each step of the walk, none first, and the estimated loss of it."""
        losses = dict(zip(self.candidates.tolist(), self._sums["erased"].tolist(), strict=True))
        losses = {k: loss / max(self._measured, 1) for k, loss in losses.items()}
        saved = self._saves(self.space, self.budget)
        none = np.zeros(len(self.space.segments), bool)
        result = [(none, 0.0)]
        full = self.space.cost(self.space.full())
        for _, erased in self.space.segments.walk(sorted(losses, key=lambda k: losses[k] / max(saved[k], 1e-30))):
            after = self.space.costs.evaluate(self._widths(), erased[None])
            share = max((full[m][0] - after[m][0]) / max(full[m][0] - limit, 1e-30) for m, limit in self.budget.limits)
            if share > self.erase and self.erase < 1:
                continue
            names = self.space.segments.check([self.space.segments[k].name for k in np.flatnonzero(erased)])
            result.append((erased, sum(losses[self.space.segments.number(name)] for name in names)))
        spaced = np.unique(np.linspace(0, len(result) - 1, min(len(result), MOST)).round().astype(int))
        return [result[k] for k in spaced]

    def _saves(self, space: Space, budget: Budget) -> Floats:
        """float64[segments]: what erasing each saves of the budget's costs, as fractions of its limits."""
        everyone = np.eye(len(space.segments), dtype=bool)
        full = space.cost(space.full())
        costs = space.costs.evaluate(np.repeat(self._widths(), len(everyone), axis=0), everyone)
        saved: Floats = np.sum([(full[m][0] - costs[m]) / limit for m, limit in budget.limits], axis=0)
        return saved

    def _widths(self) -> Ids:
        return np.array([[f.size for f in self.space.families]], np.int64)

    def _index(self, config: Config) -> UnitIndex:
        dead = self.space.dead_tensors(config.skip)
        whole = [name for name in self.space.graph.parameters() if name in dead]
        gone = [np.delete(f.classes, list(config[f.name])) for f in self.space.families]
        gone += [self.space.segments.named(name).classes for name in config.skip]
        classes = np.unique(np.concatenate([np.zeros(0, np.int64), *gone]))
        return UnitIndex(self.space, classes, whole, self._tensors)

    def _options(self) -> dict[str, Any]:
        names = [self.space.segments[int(k)].name for k in self.candidates]
        return {**super()._options(), "erase": self.erase, "candidates": names}


def silent(space: Space) -> Bools:
    """bool[segments]: whether a segment gives nothing once its own parameters are zero, whatever it is given.

    Concatenated ones lose their units, of which the label analysis has shown that. Sums are tried: the calls of the
    segment run on random inputs, with its parameters zero, and must give zero exactly. `UsageError` on meta tensors.
    """
    if space.graph.is_meta:
        raise UsageError("the model is on meta tensors", place="H2SPG", remedy="train a model that has weights")
    everyone = np.eye(len(space.segments), dtype=bool)
    live = space.segments.liveness.evaluate(everyone)
    if not len(everyone) or space.graph.inputs is None:
        return np.zeros(len(everyone), bool)
    args, kwargs = space.graph.inputs
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        values = space.graph.values(*args, **kwargs)
        result = [
            bool(segment.families) or _gives_zero(space, segment.operand, set(segment.tensors), live[k], values)
            for k, segment in enumerate(space.segments)
        ]
    return np.array(result, bool)


def _gives_zero(space: Space, operand: fx.Node, own: set[str], live: Bools, values: dict[fx.Node, Any]) -> bool:
    rules = space.segments.liveness.nodes
    inner: dict[fx.Node, Any] = {}

    def given(node: fx.Node) -> Any:
        if node in inner:
            return inner[node]
        value = values[node]
        if node.op == "get_attr":
            zero = str(node.target) in own and isinstance(space.graph.tensors[str(node.target)], nn.Parameter)
            return torch.zeros_like(value) if zero else value
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return torch.randn_like(value)
        return value

    for node in space.graph.fx.nodes:
        if node.op == "call_function" and not live[rules[node]]:
            args, kwargs = fx.map_arg((node.args, node.kwargs), given)
            inner[node] = cast("Any", node.target)(*args, **kwargs)
    result = inner[operand]
    return isinstance(result, torch.Tensor) and not bool(result.any())
