"""A small residual CNN for scikit-learn's 8x8 digits."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, image, seeded


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.project = nn.Conv2d(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.project(x))


class DigitsNet(nn.Module):
    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.block1 = Residual(width, width, 1)
        self.block2 = Residual(width, 2 * width, 2)
        self.block3 = Residual(2 * width, 2 * width, 1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.head(x.mean(dim=(2, 3)))


CASES = [
    Case("digits", "digits", seeded(DigitsNet), image(1, 8, 8), ("stem.*", "bn.*", "block*"), ("head.*",)),
]
