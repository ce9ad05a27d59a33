"""DenseNet: every layer reads the concatenation of all earlier ones through its own batch norm."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, image, seeded


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, earlier: list[Tensor]) -> Tensor:
        x = torch.cat(earlier, 1)
        x = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    def __init__(self, depth: int, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(inputs + i * growth, growth, bottleneck) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs))
        return torch.cat(outputs, 1)


class Transition(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, outputs, 1, bias=False), nn.AvgPool2d(2)
        )


class DenseNet(nn.Module):
    def __init__(self, depths: Sequence[int], growth: int = 12, stem: int = 24, bottleneck: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        channels = stem
        for index, depth in enumerate(depths):
            stages.append(DenseBlock(depth, channels, growth, bottleneck))
            channels += depth * growth
            if index + 1 < len(depths):
                stages.append(Transition(channels, channels // 2))
                channels //= 2
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stages(self.stem(x))))
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(torch.flatten(x, 1))


CASES = [
    Case(
        "densenet",
        "densenet",
        seeded(lambda: DenseNet((3, 4, 4))),
        image(),
        ("stem.weight", "stages.*", "norm.*"),
        ("classifier.*",),
        note="a unit's slices in every later batch norm are zeroed with it",
    )
]
