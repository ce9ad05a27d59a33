"""What a protocol is made of: data, a start, a training loop, budgets. The arms and the runner know nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How every arm trains. ``steps`` is what each arm may spend in all, dense pre-training included.

    Arms that cut a trained network spend ``dense`` steps on it first (0 where the start is trained already) and the
    rest on fine-tuning, with ``tune`` times the peak rate. ``start`` and ``stop`` are the sparse optimizers' schedule.
    ``mixed``: forward and backward under bfloat16 autocast, about twice as fast on CPUs that multiply bfloat16.
    """

    steps: int
    dense: int
    batch: int
    rate: float
    tune: float = 0.5
    decay: float = 5e-4
    start: float = 0.1
    stop: float = 0.6
    mixed: bool = False


class Task(Protocol):
    """One network on one data set. Everything is a function of the seed."""

    @property
    def name(self) -> str:
        """Of the journal."""

    @property
    def budgets(self) -> tuple[float, ...]:
        """Shares of the full network's MACs."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that the protocol runs."""

    @property
    def recipe(self) -> Recipe:
        """How every arm trains."""

    def start(self, seed: int) -> nn.Module:
        """The network that every arm of ``seed`` starts from."""

    def batches(self, seed: int, stage: str) -> Iterator[Batch]:
        """Training batches without end, the same for the same seed and stage."""

    def calibration(self, seed: int) -> list[Batch]:
        """Batches for scores and batch-norm statistics, not augmented."""

    def test(self, seed: int) -> list[Batch]:
        """The held-out samples."""


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; `train` sets the rate."""
    return torch.optim.SGD(
        model.parameters(), lr=recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay, foreach=True
    )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    steps: int,
    peak: float,
    mixed: bool = False,
) -> None:
    """``steps`` steps of cross entropy under a one-cycle rate: the loop of a user who knows nothing of coppice."""
    model.train()
    for step in range(steps):
        x, y = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(step / steps, peak)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = F.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
    model.eval()


def one_cycle(done: float, peak: float, warm: float = 0.2) -> float:
    """Linear to ``peak`` over the first ``warm`` of the training, then along half a cosine to zero."""
    if done < warm:
        return peak * (0.05 + 0.95 * done / warm)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


@torch.no_grad()
def evaluate(model: nn.Module, test: list[Batch]) -> tuple[float, float]:
    """Accuracy (a fraction) and mean cross entropy (nats) on ``test``."""
    model.eval()
    hits, loss, count = 0, 0.0, 0
    for x, y in test:
        logits = model(x)
        hits += int((logits.argmax(1) == y).sum())
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
        count += len(y)
    return hits / count, loss / count
