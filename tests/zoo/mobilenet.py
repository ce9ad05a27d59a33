"""MobileNet V2 (inverted residuals, linear bottlenecks) and V3 (squeeze-excite, hard swish)."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, image, seeded


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int, groups: int, act: nn.Module | None) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if act is not None:
        layers.append(act)
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Global pooling, two 1x1 convolutions with biases, and a hard sigmoid gate per channel."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = F.relu(self.fc1(scale))
        scale = F.hardsigmoid(self.fc2(scale))
        return scale * x


class InvertedResidual(nn.Module):
    def __init__(
        self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, excite: bool, act: type[nn.Module]
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        self.expand = conv_bn(inputs, hidden, 1, 1, 1, act()) if hidden != inputs else nn.Identity()
        self.depthwise = conv_bn(hidden, hidden, kernel, stride, hidden, act())
        self.se = SqueezeExcite(hidden, max(4, hidden // 4)) if excite else nn.Identity()
        self.project = conv_bn(hidden, outputs, 1, 1, 1, None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.se(self.depthwise(self.expand(x))))
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """``plan`` rows: expansion factor, output channels, repeats, stride of the first repeat."""

    def __init__(self, plan: Sequence[tuple[int, int, int, int]], stem: int = 12, last: int = 96) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inputs = stem
        for factor, outputs, repeats, stride in plan:
            for index in range(repeats):
                step = stride if index == 0 else 1
                blocks.append(InvertedResidual(inputs, inputs * factor, outputs, 3, step, False, nn.ReLU6))
                inputs = outputs
        self.stem = conv_bn(3, stem, 3, 2, 1, nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_bn(inputs, last, 1, 1, 1, nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(x.mean([2, 3]))


class MobileNetV3(nn.Module):
    """``plan`` rows: kernel, hidden channels, output channels, squeeze-excite, activation, stride."""

    def __init__(
        self,
        plan: Sequence[tuple[int, int, int, bool, type[nn.Module], int]],
        stem: int = 12,
        last: int = 96,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inputs = stem
        for kernel, expanded, outputs, excite, act, stride in plan:
            blocks.append(InvertedResidual(inputs, expanded, outputs, kernel, stride, excite, act))
            inputs = outputs
        self.stem = conv_bn(3, stem, 3, 2, 1, nn.Hardswish())
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_bn(inputs, last, 1, 1, 1, nn.Hardswish())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(last, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.head(self.blocks(self.stem(x))))
        return self.classifier(x.flatten(1))


V2_PLAN = ((1, 8, 1, 1), (6, 12, 2, 2), (6, 16, 2, 2), (6, 24, 2, 1))
V3_PLAN = (
    (3, 12, 12, True, nn.ReLU, 1),
    (3, 48, 16, False, nn.ReLU, 2),
    (3, 64, 16, False, nn.ReLU, 1),
    (5, 64, 24, True, nn.Hardswish, 2),
    (5, 96, 24, True, nn.Hardswish, 1),
)
EXPECT = ("stem.*", "blocks.*", "head.*")

CASES = [
    Case("mobilenet_v2", "mobilenet", seeded(lambda: MobileNetV2(V2_PLAN)), image(), EXPECT, ("classifier.1.*",)),
    Case(
        "mobilenet_v3",
        "mobilenet",
        seeded(lambda: MobileNetV3(V3_PLAN)),
        image(),
        (*EXPECT, "classifier.0.*"),
        ("classifier.3.*",),
        note="a gate's fc2 rows go with the channels it scales: hardsigmoid(0) is 0.5, but it multiplies a zero",
    ),
]
