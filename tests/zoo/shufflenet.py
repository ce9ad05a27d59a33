"""ShuffleNet V2: channel split, a bottleneck on one half, concatenation and channel shuffle."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.case import Case, image, seeded


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    x = x.transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


def depthwise(channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.split = stride == 1
        if self.split:
            assert inputs == outputs
            self.branch1 = nn.Sequential()
        else:
            self.branch1 = nn.Sequential(*depthwise(inputs, stride), *pointwise(inputs, half))
        entry = half if self.split else inputs
        self.branch2 = nn.Sequential(*pointwise(entry, half), *depthwise(half, stride), *pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        if self.split:
            kept, moved = x.chunk(2, dim=1)
            out = torch.cat((kept, self.branch2(moved)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    def __init__(self, widths: Sequence[int], depths: Sequence[int], stem: int = 24, last: int = 128) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        stages: list[nn.Module] = []
        inputs = stem
        for width, depth in zip(widths, depths, strict=True):
            units = [Unit(inputs, width, 2)] + [Unit(width, width, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*units))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.last = nn.Sequential(*pointwise(inputs, last))
        self.fc = nn.Linear(last, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        x = self.last(x).mean([2, 3])
        return self.fc(x)


CASES = [
    Case(
        "shufflenet_v2",
        "shufflenet",
        seeded(lambda: ShuffleNetV2((48, 96, 128), (2, 4, 2))),
        image(),
        (
            "stem.0.weight",
            "stem.1.*",
            "last.0.weight",
            "last.1.*",
            *(f"stages.*.branch2.{i}.*" for i in (0, 1, 3, 4)),
        ),
        ("fc.*",),
        may=("stages.*.branch1.*", *(f"stages.*.branch2.{i}.*" for i in (5, 6))),
        note="branch inner channels are plain; the shuffled stream is prunable only along orbits of split and shuffle",
    )
]
