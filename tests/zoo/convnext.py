"""ConvNeXt: depthwise 7x7, channels-last layer norm and MLP, layer scale, residual."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, image, seeded


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of an NCHW map."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)
        x = self.norm(x)
        x = self.pwconv2(self.act(self.pwconv1(x)))
        x = self.gamma * x
        x = x.permute(0, 3, 1, 2)
        return shortcut + x


class ConvNeXt(nn.Module):
    def __init__(self, depths: Sequence[int] = (1, 2, 1), widths: Sequence[int] = (24, 48, 96)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), LayerNorm2d(widths[0], eps=1e-6))
        self.downsamples = nn.ModuleList(
            nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, after, 2, stride=2))
            for before, after in pairwise(widths)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(depth))) for depth, width in zip(depths, widths, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = self.downsamples[index - 1](x)
            x = stage(x)
        return self.head(self.norm(x.mean([-2, -1])))


CASES = [
    Case(
        "convnext",
        "convnext",
        seeded(ConvNeXt),
        image(),
        (
            "stages.*.pwconv1.*",
            "stem.*",
            "downsamples.*",
            "stages.*.dwconv.*",
            "stages.*.norm.*",
            "stages.*.pwconv2.*",
            "*.gamma",
            "norm.*",
        ),
        ("head.*",),
        note="everything on the stream meets a layer norm over channels, which keeps its count",
    )
]
