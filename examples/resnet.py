"""A residual network for 32x32 images, as most people write one.

coppice explain examples/resnet.py:build
coppice compile examples/resnet.py:build --budget macs=50% --out out/resnet
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """(N, 3, 32, 32) -> (N, classes): three stages of ``depth`` blocks, each twice as wide and half as large."""

    def __init__(self, width: int = 16, depth: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, width, 2 * width, 4 * width]
        blocks = [
            Block(widths[stage] if k == 0 else widths[stage + 1], widths[stage + 1], 2 if stage and k == 0 else 1)
            for stage in range(3)
            for k in range(depth)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(x.mean(dim=(2, 3)))


def build() -> tuple[nn.Module, Any]:
    """The model and example inputs. Weights are random here; load your checkpoint before you return the model."""
    torch.manual_seed(0)
    return ResNet(), torch.randn(2, 3, 32, 32)
