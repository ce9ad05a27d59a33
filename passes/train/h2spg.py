"""H2SPG: whole segments are erased, and channels pruned beside them, in one training run (Chen et al., OTOv3, 2023).

At the choice, candidate segments are walked in the order of what erasing them costs in loss for what it saves. Each is
erased tentatively and skipped where no valid graph would be left (`coppice.core.segments`), or where erasing would
bring more than its part of the saving; the allocator meets the rest of the budget with units. From then on the
parameters of the erased segments are redundant units like any others, and `DHSPG` takes them to zero.

What a segment costs in loss is estimated from the mean over warm-up steps of |sum x g| over each row of its parameters
x with gradients g, the first-order change of the loss without that row (Molchanov et al., 2019). The segment is gone
once all rows of any one of its tensors are: its loss is that of the tensor whose rows lose most together. (The plain
sum over a segment would not do: weights under a batch norm are at right angles to their gradients, and most of it
cancels.)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import fx, nn
from torch.utils._pytree import tree_map

from coppice.core.budget import Budget, BudgetLike, resolve
from coppice.core.config import Config
from coppice.core.errors import UsageError
from coppice.core.solve import Bools
from coppice.core.space import Floats, Space
from coppice.passes.prune.allocate import allocate
from coppice.passes.train.dhspg import DHSPG
from coppice.passes.train.units import Parts, UnitIndex

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class H2SPG(DHSPG):
    """Erases segments of ``space`` and prunes units to ``budget``; `PruningOptimizer` says what the arguments mean.

    ``erase`` is the part of the saved cost that erasing brings, as nearly as whole segments allow, and no more unless
    the budget cannot be met otherwise; units bring the rest. ``keep`` names segments that stay. Only segments that zero
    parameters silence are erased (`silent`), so that the trained model itself computes what the subnet does;
    ``config().skip`` names them.
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
        erase: float = 0.5,
        keep: Sequence[str] = (),
        epsilon: float = 0.0,
        penalty: tuple[float, float, float] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        if not 0 <= erase <= 1:
            raise UsageError(f"erase is {erase}", place="H2SPG", remedy="give a part of the saving, 0 to 1")
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

    def _resolve(self, budget: BudgetLike, space: Space) -> Budget:
        saved = _saves(space, resolve({"macs": 1.0}, space))
        walked = space.segments.walk(sorted(self.candidates.tolist(), key=lambda k: -saved[k]))
        return resolve(budget, space, [space.segments[k].name for k, _ in walked] if self.erase else [])

    # ---- measurements ----------------------------------------------------------------------------------------------

    def _measure(self, index: UnitIndex, x: Parts, g: Parts) -> dict[str, torch.Tensor]:
        rows = self._index_of_rows()
        along = rows.products(rows.look(dict(self._tensors)), rows.look(self._gradients(rows.names)))
        return {**super()._measure(index, x, g), "rows": along.abs()}

    def _index_of_rows(self) -> UnitIndex:
        """Every row of every parameter of every candidate, in the order of ``_watched``."""
        if self._rows is None:
            self._rows = UnitIndex(self.space, np.zeros(0, np.int64), self._watched, self._tensors)
        return self._rows

    def _losses(self) -> dict[int, float]:
        """The estimated loss of erasing each candidate."""
        sizes = [self._tensors[name].shape[0] if self._tensors[name].ndim else 1 for name in self._watched]
        rows = self._sums.get("rows", torch.zeros(sum(sizes), dtype=torch.float64)).numpy() / max(self._measured, 1)
        parts = zip(self._watched, np.split(rows, np.cumsum(sizes)[:-1]), strict=True)
        of = {name: float(part.sum()) for name, part in parts}
        segments = {int(k): self.space.segments[int(k)] for k in self.candidates}
        return {k: max((of[n] for n in segment.tensors if n in of), default=0.0) for k, segment in segments.items()}

    # ---- the choice ------------------------------------------------------------------------------------------------

    def _choose(self) -> Config:
        """Erase the part asked for, and more only where units cannot meet the rest of the budget."""
        segments, saliency = self.space.segments, self.saliency()
        losses, saved = self._losses(), _saves(self.space, self.budget).tolist()
        by_loss = sorted(losses, key=lambda k: losses[k] / max(saved[k], 1e-30))
        by_cost = sorted(losses, key=lambda k: -saved[k])
        within = [np.zeros(len(segments), bool)]
        within += [erased for _, erased in segments.walk(by_loss, lambda erased: self._share(erased) <= self.erase)]
        further = (erased for order in (by_loss, by_cost) for _, erased in segments.walk(order))
        configs = (self._beside(erased, saliency) for erased in itertools.chain(within[-1:], further))
        return next(config for config in configs if config is not None)

    def _beside(self, erased: Bools, saliency: dict[str, Floats]) -> Config | None:
        """The config that erases these segments and meets the budget with units; None where that cannot be."""
        skip = tuple(self.space.segments[int(k)].name for k in np.flatnonzero(erased))
        rest = self.space.without(skip)
        least = rest.cost(np.array([[f.widths[0] for f in rest.families]], np.int64))
        if any(float(least[metric][0]) > limit for metric, limit in self.budget.limits):
            return None
        config = allocate(rest, saliency, self.budget)
        return self.space.check(Config.of(dict(config.keep), skip=skip))

    def _share(self, erased: Bools) -> float:
        """The part of the saving that the budget asks for which ``erased`` alone brings."""
        full = self.space.cost(self.space.full())
        after = self.space.costs.evaluate(np.array([[f.size for f in self.space.families]], np.int64), erased[None])
        asked = {m: full[m][0] - limit for m, limit in self.budget.limits}
        return float(max((full[m][0] - after[m][0]) / max(ask, 1e-30) for m, ask in asked.items()))

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


def _saves(space: Space, budget: Budget) -> Floats:
    """float64[segments]: what erasing each saves of the budget's costs, as fractions of its limits."""
    full, costs = space.cost(space.full()), space.cost_without_each()
    saved: Floats = np.sum([(full[m][0] - costs[m]) / limit for m, limit in budget.limits], axis=0)
    return saved


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
    device = next(iter(space.graph.tensors.values())).device
    args, kwargs = tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, space.graph.inputs)
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
