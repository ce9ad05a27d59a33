"""Torch-Pruning, driven to a share of the MACs.

Its pruner takes a ratio of channels, so the ratio is bisected. Options: ``global_pruning=True`` (all layers compete),
the importance's own defaults, the last layer ignored, one step. Channels leave one at a time, and on a small network
one channel is worth more than the allowed gap; so from the last networks above the budget a few more channels leave,
each the least important of its layer by the same importance: as few as land within the gap, and of these the closest.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

import coppice
from quality.task import Batch

CLOSE = 0.01
MOST, STEPS = 4, 8
"""Channels that leave one by one after the pruner's own; ratios that are tried, each a hundredth less."""


def installed() -> bool:
    return importlib.util.find_spec("torch_pruning") is not None


def prune(
    model: nn.Module, space: coppice.Space, budget: float, importance: str, calibration: list[Batch]
) -> nn.Module:
    """``model`` cut to between (1 - `CLOSE`) ``budget`` and ``budget`` of its MACs, if a few channels reach that."""
    if importance == "taylor":
        accumulate(model, calibration)
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        ratio = (low + high) / 2
        cut = Cut(model, importance, calibration[0][0][:2], ratio)
        low, high = (ratio, high) if shares(space, cut.widths(space)[None])[0] > budget else (low, ratio)
    for step in range(STEPS):
        cut = Cut(model, importance, calibration[0][0][:2], max(low - 0.01 * step, 0.0))
        if cut.trim(space, budget):
            break
    cut.model.zero_grad(set_to_none=True)
    return cut.model


def accumulate(model: nn.Module, calibration: list[Batch]) -> None:
    """Gradients of the loss over the calibration batches, where the Taylor importance looks for them."""
    model.eval()
    model.zero_grad()
    for x, y in calibration:
        torch.autograd.backward(F.cross_entropy(model(x), y) / len(calibration))


class Cut:
    """A copy of ``model`` (gradients too) without ``ratio`` of all its channels, as Torch-Pruning chooses them."""

    def __init__(self, model: nn.Module, importance: str, example: torch.Tensor, ratio: float) -> None:
        import torch_pruning as tp

        self.model = copy.deepcopy(model)
        for ours, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            ours.grad = None if theirs.grad is None else theirs.grad.clone()
        kinds = {"magnitude": tp.importance.MagnitudeImportance, "taylor": tp.importance.TaylorImportance}
        last = [module for module in self.model.modules() if isinstance(module, nn.Linear)][-1]
        self.pruner = tp.pruner.BasePruner(
            self.model, example, importance=kinds[importance](), global_pruning=True, pruning_ratio=ratio,
            ignored_layers=[last], in_channel_groups={}, out_channel_groups={},
        )  # fmt: skip
        self.pruner.step()

    def widths(self, space: coppice.Space) -> npt.NDArray[np.int64]:
        """int[families]: the channels left of each of our families, from the layer that it is named after."""
        layers = dict(self.model.named_modules())
        return np.array([_width(layers[family.name]) for family in space.families], np.int64)

    def trim(self, space: coppice.Space, budget: float) -> bool:
        """Let at most `MOST` more channels leave, so that ``budget`` is met and no more than `CLOSE` is left of it.

        Returns False, and changes nothing, where no choice of so few does.
        """
        now = self.widths(space)
        trials = np.array([
            np.bincount(chosen, minlength=len(now))
            for count in range(MOST + 1)
            for chosen in itertools.combinations_with_replacement(range(len(now)), count)
        ])  # fmt: skip
        trials = trials[(now - trials >= 1).all(axis=1)]
        left = shares(space, now - trials)
        lands = (left <= budget) & (left >= (1 - CLOSE) * budget)
        if not lands.any():
            return False
        fewest = trials.sum(axis=1) == trials[lands].sum(axis=1).min()
        best = trials[np.argmax(np.where(lands & fewest, left, -1.0))]
        for family, count in zip(space.families, best.tolist(), strict=True):
            if count:
                self.remove(family.name, count)
        return True

    def remove(self, name: str, count: int) -> None:
        """The ``count`` least important channels of one layer, with all that is tied to them."""
        layer = self.model.get_submodule(name)
        graph = self.pruner.DG
        leave = graph.get_pruner_of_module(layer).prune_out_channels
        whole = graph.get_pruning_group(layer, leave, list(range(_width(layer))))
        order = torch.argsort(self.pruner.estimate_importance(whole))
        graph.get_pruning_group(layer, leave, order[:count].tolist()).prune()


def shares(space: coppice.Space, widths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """float64[n]: the share of the full network's MACs, by coppice's cost model, of int widths [n, families]."""
    result: npt.NDArray[np.float64] = space.cost(widths)["macs"] / space.cost(space.full())["macs"][0]
    return result


def _width(layer: nn.Module) -> int:
    return int(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)  # type: ignore[arg-type]
