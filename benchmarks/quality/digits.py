"""The digits protocol: few, noisy, shifted 8x8 digits, so that arms differ; a small residual network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from quality.nets import ResNet
from quality.task import Batch, Recipe

TRAINED, NOISE = 500, 0.6
"""Training images of the 1,797, and the standard deviation of the noise on every image (pixels are in -1..1)."""


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: another stratified split, noise, start and order of samples for every seed."""

    name: str = "digits"
    budgets: tuple[float, ...] = (0.5, 0.3, 0.15)
    seeds: tuple[int, ...] = tuple(range(20))
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=200, dense=60, batch=50, rate=0.2, tune=1.0))

    def start(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return ResNet((16, 32), (1, 2), inputs=1)

    def batches(self, seed: int, stage: str) -> Iterator[Batch]:
        x, y, _, _ = split(seed)
        generator = torch.Generator().manual_seed(1000 * seed + sum(map(ord, stage)))
        while True:
            order = torch.randperm(len(x), generator=generator)
            for at in torch.split(order, self.recipe.batch):
                if len(at) == self.recipe.batch:
                    yield blur(x[at], generator), y[at]

    def calibration(self, seed: int) -> list[Batch]:
        x, y, _, _ = split(seed)
        generator = torch.Generator().manual_seed(seed)
        return [(blur(a, generator), b) for a, b in zip(torch.split(x, 100), torch.split(y, 100), strict=True)]

    def test(self, seed: int) -> list[Batch]:
        _, _, x, y = split(seed)
        return [(blur(x, torch.Generator().manual_seed(10_000 + seed)), y)]


@cache
def split(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (float32, n x 1 x 8 x 8) and labels (int64)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    x = (raw.images.astype(np.float32) / 8.0 - 1.0)[:, None]
    parts = train_test_split(x, raw.target.astype(np.int64), train_size=TRAINED, random_state=seed, stratify=raw.target)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return train_x, train_y, test_x, test_y


def blur(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to a pixel (background moves in), and noise on all of it."""
    n, _, height, width = x.shape
    x = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    dy, dx = torch.randint(0, 3, (2, n, 1), generator=generator)
    rows, columns = (dy + torch.arange(height))[:, :, None], (dx + torch.arange(width))[:, None, :]
    x = x[torch.arange(n)[:, None, None], 0, rows, columns][:, None]
    return x + NOISE * torch.randn(x.shape, generator=generator)
