"""The CIFAR-10 protocol, on images that went through JPEG: figures compare arms with each other alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from quality import nets
from quality.images import DATA, FILE, ROOT, Images, MissingError, augment, load, standardise
from quality.task import Batch, Recipe, optimizer, train

CACHE = ROOT / "out" / "quality"
WEIGHTS = Path("mlperf_tiny") / "resnet8_cifar10_fp32_bn.npz"
BATCH = 128
CALIBRATED = 1024


@dataclass(frozen=True)
class ResNet20:
    """ResNet-20 from scratch, five epochs in all."""

    name: str = "resnet20"
    data: Path = DATA
    budgets: tuple[float, ...] = (0.5, 0.3)
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: Recipe = field(
        default_factory=lambda: Recipe(steps=1950, dense=650, batch=BATCH, rate=0.4, tune=1.0, mixed=True)
    )

    def start(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nets.resnet20()

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        return standardise(x).contiguous(memory_format=torch.channels_last)  # a third faster on CPUs

    def batches(self, seed: int, stage: str) -> Iterator[Batch]:
        images = pictures(self.data)
        generator = torch.Generator().manual_seed(1000 * seed + sum(map(ord, stage)))
        while True:
            for at in torch.split(torch.randperm(len(images.train_x), generator=generator), BATCH):
                if len(at) == BATCH:
                    yield self.prepare(augment(images.train_x[at], generator)), images.train_y[at]

    def calibration(self, seed: int) -> list[Batch]:
        images = pictures(self.data)
        at = torch.randperm(len(images.train_x), generator=torch.Generator().manual_seed(seed))[:CALIBRATED]
        return [(self.prepare(images.train_x[part]), images.train_y[part]) for part in torch.split(at, BATCH)]

    def test(self, seed: int) -> list[Batch]:
        images = pictures(self.data)
        pairs = zip(torch.split(images.test_x, 1000), torch.split(images.test_y, 1000), strict=True)
        return [(self.prepare(x), y) for x, y in pairs]


@dataclass(frozen=True)
class ResNet8(ResNet20):
    """MLPerf Tiny's trained ResNet8, adapted to these images once; every arm of every seed starts from there.

    The start is trained, so the arms that cut a trained network spend all their steps on fine-tuning.
    """

    name: str = "resnet8"
    recipe: Recipe = field(
        default_factory=lambda: Recipe(steps=1560, dense=0, batch=BATCH, rate=0.1, tune=1.0, mixed=True)
    )

    ADAPTED = 1170
    """Steps of adaptation: three epochs."""

    def start(self, seed: int) -> nn.Module:
        model = nets.resnet8()
        model.load_state_dict(torch.load(self._adapted(), weights_only=True))
        return model

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Its weights want 0..255."""
        return x.float().contiguous(memory_format=torch.channels_last)

    def _adapted(self) -> Path:
        """The file of the adapted weights, made the first time."""
        file = CACHE / f"resnet8-adapted-{self.ADAPTED}.pt"
        if not file.exists():
            source = self.data / WEIGHTS
            if not source.exists():
                raise MissingError(f"{source.name} is not in {source.parent}: name the data folder with --data")
            model = nets.resnet8()
            with np.load(source) as held:
                model.load_state_dict(nets.resnet8_weights(held))
            train(model, optimizer(model, self.recipe), self.batches(0, "adapt"), self.ADAPTED, 0.02, self.recipe.mixed)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}")
            torch.save(model.state_dict(), part)
            part.replace(file)
        return file


@cache
def pictures(data: Path) -> Images:
    return load(data / FILE, CACHE / "cifar10.npz")
