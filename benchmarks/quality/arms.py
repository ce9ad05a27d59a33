"""The arms: each turns a start into a subnet at a budget, spending exactly the steps of the recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import coppice
from quality import torch_pruning_arm
from quality.images import PEERS, use_peers
from quality.task import Task, optimizer, train

TOLERANCE = 0.01
"""Achieved MACs may lie this fraction below the budget, and not above it: all arms are equal within it."""


class MissedBudgetError(Exception):
    """A run whose cost is not the one asked for: it is compared with nothing."""


@dataclass(frozen=True)
class Cell:
    """One run: an arm at a budget (fraction of the full network's MACs) with a seed."""

    arm: str
    budget: float
    seed: int

    @property
    def key(self) -> str:
        return f"{self.arm}/{self.budget:g}/{self.seed}"


@dataclass(frozen=True)
class Given:
    """What an arm may use: the task, the trained dense network's state, DHSPG's widths for the same budget and seed."""

    task: Task
    cell: Cell
    dense: Mapping[str, torch.Tensor] | None = None
    widths: Mapping[str, int] | None = None

    def model(self, trained: bool = False) -> nn.Module:
        model = self.task.start(self.cell.seed)
        if trained and self.dense is not None:
            model.load_state_dict(self.dense)
        return model

    def space(self, model: nn.Module) -> coppice.Space:
        return coppice.build_space(coppice.trace(model, self.task.test(self.cell.seed)[0][0][:2]))

    @property
    def limit(self) -> dict[str, float]:
        return {"macs": self.cell.budget}


def sparse(given: Given, name: str, **options: Any) -> nn.Module:
    """Train once under one of coppice's sparse optimizers, and cut at the end."""
    recipe = given.task.recipe
    model = given.model()
    space = given.space(model)
    made = getattr(coppice, name)(
        space, optimizer(model, recipe), given.limit, steps=recipe.steps,
        **{"start": recipe.start, "stop": recipe.stop} | options,
    )  # fmt: skip
    train(model, made, given.task.batches(given.cell.seed, "train"), recipe.steps, recipe.rate, recipe.mixed)
    return coppice.extract(space, made.config()).module


def one_shot(given: Given, score: str) -> nn.Module:
    """Cut the trained network by ``score``, measure its batch norms again, fine-tune."""
    model = given.model(trained=True)
    space = given.space(model)
    calibration = given.task.calibration(given.cell.seed)
    config = coppice.prune(space, given.limit, score, calibration, seed=given.cell.seed)
    subnet = coppice.recalibrate(coppice.extract(space, config), calibration)
    return fine_tune(given, subnet.module)


def torch_pruning(given: Given, importance: str) -> nn.Module:
    """Torch-Pruning's global pruning of the trained network, driven to the budget, then the same fine-tuning."""
    model = given.model(trained=True)
    space = given.space(copy.deepcopy(model))
    calibration = given.task.calibration(given.cell.seed)
    return fine_tune(given, torch_pruning_arm.prune(model, space, given.cell.budget, importance, calibration))


def scratch(given: Given) -> nn.Module:
    """A fresh network of the widths that DHSPG chose, trained for all the steps."""
    assert given.widths is not None
    model = given.model()
    space = given.space(model)
    named = {family.name: given.widths[family.name] for family in space.families}
    small = coppice.extract(space, space.with_widths(named)).module
    torch.manual_seed(given.cell.seed)
    for module in small.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return from_start(given, small)


def full(given: Given) -> nn.Module:
    """The whole network, for reference: what the budget costs."""
    return from_start(given, given.model())


def from_start(given: Given, model: nn.Module) -> nn.Module:
    recipe = given.task.recipe
    batches = given.task.batches(given.cell.seed, "train")
    train(model, optimizer(model, recipe), batches, recipe.steps, recipe.rate, recipe.mixed)
    return model


def fine_tune(given: Given, model: nn.Module) -> nn.Module:
    recipe = given.task.recipe
    batches = given.task.batches(given.cell.seed, "tune")
    steps = recipe.steps - recipe.dense
    train(model, optimizer(model, recipe), batches, steps, recipe.tune * recipe.rate, recipe.mixed)
    return model


def dense_state(task: Task, seed: int) -> dict[str, torch.Tensor]:
    """The network that the cutting arms of a seed share, after its part of the steps."""
    model, recipe = task.start(seed), task.recipe
    train(model, optimizer(model, recipe), task.batches(seed, "train"), recipe.dense, recipe.rate, recipe.mixed)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class Arm:
    """``title`` for the tables; ``needs`` another arm's widths, or the trained dense network."""

    title: str
    run: Callable[[Given], nn.Module]
    needs: str = ""
    ours: bool = False


FULL = "full"
ARMS: dict[str, Arm] = {
    "dhspg": Arm("DHSPG", lambda given: sparse(given, "DHSPG"), ours=True),
    "hesso": Arm("HESSO", lambda given: sparse(given, "HESSO"), ours=True),
    "h2spg": Arm("H2SPG", lambda given: sparse(given, "H2SPG"), ours=True),
    "one_shot": Arm("one-shot Taylor, recalibrated, fine-tuned", lambda given: one_shot(given, "taylor"), "dense"),
    "tp_magnitude": Arm(
        "Torch-Pruning magnitude, fine-tuned", lambda given: torch_pruning(given, "magnitude"), "dense"
    ),
    "tp_taylor": Arm("Torch-Pruning Taylor, fine-tuned", lambda given: torch_pruning(given, "taylor"), "dense"),
    "random": Arm("random units, recalibrated, fine-tuned", lambda given: one_shot(given, "random"), "dense"),
    "scratch": Arm("from scratch at DHSPG's widths", scratch, "dhspg"),
    FULL: Arm("the full network", full),
}


def absent() -> dict[str, str]:
    """Arms that cannot run here, and why."""
    missing = {name: f"coppice has no {name.upper()}" for name in ("dhspg", "hesso", "h2spg")
               if not hasattr(coppice, name.upper())}  # fmt: skip
    use_peers()
    if not torch_pruning_arm.installed():
        missing |= dict.fromkeys(("tp_magnitude", "tp_taylor"), f"torch-pruning is not in {PEERS.name}")
    return missing


def widths(model: nn.Module) -> dict[str, int]:
    """Output channels of every convolution and hidden linear layer, by module name."""
    return {
        name: int(module.out_channels if isinstance(module, nn.Conv2d) else module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def check(model: nn.Module, given: Given) -> dict[str, Any]:
    """Shares of MACs and parameters that ``model`` has, counted by coppice on its own trace, whoever made it.

    Raises `MissedBudgetError` where the MACs are not those of the cell.
    """
    space = given.space(model)
    own, whole = space.cost(space.full()), _whole(given.task)
    share = {metric: float(own[metric][0]) / whole[metric] for metric in ("macs", "params")}
    budget = 1.0 if given.cell.arm == FULL else given.cell.budget
    if not (1 - TOLERANCE) * budget <= share["macs"] <= budget * (1 + 1e-9):
        raise MissedBudgetError(f"{given.cell.key}: {share['macs']:.4%} of the MACs, asked for {budget:.0%}")
    return share


_WHOLE: dict[str, dict[str, float]] = {}


def _whole(task: Task) -> dict[str, float]:
    """Costs of the task's full network, traced once."""
    if task.name not in _WHOLE:
        given = Given(task, Cell(FULL, 1.0, task.seeds[0]))
        space = given.space(given.model())
        _WHOLE[task.name] = {metric: float(values[0]) for metric, values in space.cost(space.full()).items()}
    return _WHOLE[task.name]
