"""Spaces of zoo models, traced once, and a tiny one whose configs can all be tried."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from coppice import Config, Graph, Space, build_space, trace
from zoo import MODELS

Ints = npt.NDArray[np.int64]


@cache
def traced(name: str) -> Graph:
    case = MODELS[name]
    args, kwargs = case.args()
    return trace(case.build(), kwargs or args)


@cache
def space_of(name: str, round_to: int = 1) -> Space:
    """The space of a zoo model, or of the tiny net; shared by all tests, which only read it."""
    return build_space(tiny_graph() if name == "tiny" else traced(name), round_to=round_to)


class Tiny(nn.Module):
    """(N, 2, 6, 6) -> (N, 3) through three families of 8, 10 and 12 units of very different cost."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 10, 1)
        self.hidden = nn.Linear(10, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        logits: Tensor = self.out(torch.relu(self.hidden(x.mean(dim=(2, 3)))))
        return logits


def tiny_graph() -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(Tiny(), torch.randn(2, 2, 6, 6))


def every_width(space: Space) -> Ints:
    """int64[n, families]: every allowed combination of widths."""
    return np.array(list(itertools.product(*(f.widths for f in space.families))), np.int64)


def costs(space: Space, config: Config) -> dict[str, float]:
    return {metric: float(values[0]) for metric, values in space.cost(config).items()}


def full(space: Space) -> dict[str, float]:
    return costs(space, space.full())


@cache
def least(space: Space) -> Config:
    """The config with the smallest allowed width everywhere."""
    return space.with_widths({f.name: f.widths[0] for f in space.families})


def limits(space: Space, budget: Mapping[str, Any]) -> dict[str, float]:
    """What percentages mean for this space."""
    return {metric: float(value.rstrip("%")) / 100 * full(space)[metric] for metric, value in budget.items()}


def growable(space: Space, config: Config, most: Mapping[str, float]) -> list[str]:
    """The families that could take one more allowed step without leaving the budget."""
    widths = np.array([len(config[f.name]) for f in space.families], np.int64)
    found = []
    for k, family in enumerate(space.families):
        up = next((w for w in family.widths if w > widths[k]), None)
        if up is None:
            continue
        grown = widths.copy()
        grown[k] = up
        cost = space.cost(grown[None, :])
        if all(cost[metric][0] <= limit for metric, limit in most.items()):
            found.append(f"{family.name} {widths[k]} -> {up}")
    return found
