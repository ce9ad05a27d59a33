"""Networks made to lose operators: stacked U-Nets, a ResNet of parallel operators, DARTS cells, RegNet."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, image, seeded


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class InnerUNet(nn.Module):
    """Two downs and two ups, with concatenated skips; (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn(width, 2 * width), conv_bn(2 * width, 2 * width)
        self.up2, self.up1 = nn.ConvTranspose2d(2 * width, 2 * width, 2, 2), nn.ConvTranspose2d(4 * width, width, 2, 2)
        self.out = conv_bn(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.down1(F.max_pool2d(x, 2)))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        one = torch.cat([one, F.relu(self.up2(two))], 1)
        return F.relu(self.out(torch.cat([x, F.relu(self.up1(one))], 1)))


class StackedUNets(nn.Module):
    def __init__(self, width: int = 8, stack: int = 2) -> None:
        super().__init__()
        self.stem = conv_bn(3, width)
        self.nets = nn.ModuleList(InnerUNet(width) for _ in range(stack))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for net in self.nets:
            x = x + net(x)
        return self.head(x)


class Parallel(nn.Module):
    """3x3, 5x5, depthwise separable and 1x1 convolutions of the same input, summed."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.operators = nn.ModuleList(
            [
                conv_bn(inputs, outputs, 3, stride),
                conv_bn(inputs, outputs, 5, stride),
                nn.Sequential(conv_bn(inputs, inputs, 3, stride, inputs), nn.ReLU(), conv_bn(inputs, outputs, 1)),
                conv_bn(inputs, outputs, 1, stride),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        total = self.operators[0](x)
        for operator in self.operators[1:]:
            total = total + operator(x)
        return F.relu(total)


class SuperResNet(nn.Module):
    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = conv_bn(3, width)
        self.cells = nn.Sequential(Parallel(width, width, 1), Parallel(width, 2 * width, 2), Parallel(2 * width, 16, 1))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(F.relu(self.stem(x))).mean((2, 3)))


class Mixed(nn.Module):
    """A DARTS edge: operators weighted by a softmax that all cells share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.operators = nn.ModuleList(
            [
                nn.Sequential(nn.ReLU(), conv_bn(width, width, 3)),
                nn.Sequential(nn.ReLU(), conv_bn(width, width, 3, groups=width), conv_bn(width, width, 1)),
                nn.MaxPool2d(3, 1, 1),
                nn.AvgPool2d(3, 1, 1),
                nn.Identity(),
            ]
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(weight * operator(x) for weight, operator in zip(weights.unbind(), self.operators, strict=True))


class Cell(nn.Module):
    """Two nodes over two inputs, every pair joined by a mixed edge; the nodes are concatenated."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.before, self.now = conv_bn(inputs, width, 1), conv_bn(inputs, width, 1)
        self.edges = nn.ModuleList(Mixed(width) for _ in range(5))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        states = [self.before(x), self.now(F.relu(x))]
        edges = iter(self.edges)
        rows = iter(weights.unbind())
        for _ in range(2):
            states.append(sum(next(edges)(state, next(rows)) for state in list(states)))
        return torch.cat(states[2:], 1)


class Darts(nn.Module):
    def __init__(self, width: int = 6, cells: int = 2, classes: int = 4) -> None:
        super().__init__()
        self.stem = conv_bn(3, 2 * width)
        self.cells = nn.ModuleList(Cell(2 * width, width) for _ in range(cells))
        self.alphas = nn.Parameter(1e-1 * torch.randn(5, 5))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights = torch.softmax(self.alphas, -1)
        for cell in self.cells:
            x = cell(x, weights)
        return self.head(x.mean((2, 3)))


class RegNetBlock(nn.Module):
    """A bottleneck with a grouped convolution and squeeze-and-excitation."""

    def __init__(self, inputs: int, outputs: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.a, self.c = conv_bn(inputs, outputs, 1), conv_bn(outputs, outputs, 1)
        self.b = conv_bn(outputs, outputs, 3, stride, outputs // group_width)
        self.squeeze, self.excite = nn.Conv2d(outputs, outputs // 4, 1), nn.Conv2d(outputs // 4, outputs, 1)
        self.proj = None if stride == 1 and inputs == outputs else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.a(x))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return F.relu((x if self.proj is None else self.proj(x)) + self.c(y))


class RegNet(nn.Module):
    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2)
        stages = [(8, 16, 1), (16, 24, 2)]
        self.stages = nn.Sequential(
            *(RegNetBlock(w if k else i, w, 2 if k == 0 else 1, 4) for i, w, d in stages for k in range(d + 1))
        )
        self.head = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(F.relu(self.stem(x))).mean((2, 3)))


HEAD = ("head.*",)
UPS = {"nets.*.up?.weight": 1}

CASES = [
    Case("stacked_unets", "segments", seeded(StackedUNets), image(3, 16, 16), ("stem.*", "nets.*"), HEAD, axes=UPS),
    Case("super_resnet", "segments", seeded(SuperResNet), image(3, 12, 12), ("stem.*", "cells.*"), HEAD),
    Case(
        "darts", "segments", seeded(Darts), image(3, 8, 8), expect_frozen=(*HEAD, "alphas"), may=("stem.*", "cells.*")
    ),
    Case("regnet", "segments", seeded(RegNet), image(3, 16, 16), ("stem.*",), HEAD, may=("stages.*",)),
]
