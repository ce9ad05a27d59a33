"""Residual networks: basic, bottleneck, pre-activation, grouped (ResNeXt) and padding ("option A") shortcuts."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, image, seeded


class PadShortcut(nn.Module):
    """Option A: subsample by striding and pad the new channels with zeros, half on each side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def shortcut(kind: str, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    if kind == "pad":
        return PadShortcut(inputs, outputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, groups: int, kind: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(kind, inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, groups: int, kind: str) -> None:
        super().__init__()
        outputs = width * self.expansion
        inner = width * 2 if groups > 1 else width
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(kind, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + identity)


class PreActBlock(nn.Module):
    """Batch norm and ReLU come before each convolution; the stream itself is never normalised."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, groups: int, kind: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.downsample = shortcut(kind, inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        identity = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + identity


Block = type[BasicBlock] | type[Bottleneck] | type[PreActBlock]


class ResNet(nn.Module):
    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        base: int = 16,
        classes: int = 10,
        groups: int = 1,
        kind: str = "project",
        imagenet_stem: bool = False,
    ) -> None:
        super().__init__()
        if imagenet_stem:
            self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
            self.pool: nn.Module = nn.MaxPool2d(3, 2, 1)
        else:
            self.conv1 = nn.Conv2d(3, base, 3, 1, 1, bias=False)
            self.pool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        inputs = base
        self.stages = len(depths)
        for index, depth in enumerate(depths):
            width = base * 2**index
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(inputs, width, stride, groups, kind))
                inputs = width * block.expansion
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        self.bn2 = nn.BatchNorm2d(inputs) if block is PreActBlock else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
        if self.bn2 is not None:
            x = F.relu(self.bn2(x))
        return self.fc(self.avgpool(x).flatten(1))


def resnet50(classes: int = 1000) -> ResNet:
    """ResNet-50 at its published size (25.6 M parameters, 224x224 inputs)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), base=64, classes=classes, imagenet_stem=True)


EXPECT = ("conv1.weight", "bn1.*", "layer*.conv*.weight", "layer*.bn*", "layer*.downsample.*")
FROZEN = ("fc.weight", "fc.bias")

CASES = [
    Case("resnet20", "resnet", seeded(lambda: ResNet(BasicBlock, (3, 3, 3))), image(), EXPECT, FROZEN),
    Case(
        "resnet18_narrow",
        "resnet",
        seeded(lambda: ResNet(BasicBlock, (2, 2, 2, 2), base=12, imagenet_stem=True)),
        image(),
        EXPECT,
        FROZEN,
    ),
    Case(
        "resnet20_pad",
        "resnet",
        seeded(lambda: ResNet(BasicBlock, (3, 3, 3), kind="pad")),
        image(),
        EXPECT[:-1],
        FROZEN,
        note="padding shortcuts tie channel k of one stage to channel k + before of the next",
    ),
    Case("resnet_bottleneck", "resnet", seeded(lambda: ResNet(Bottleneck, (2, 2, 2), base=8)), image(), EXPECT, FROZEN),
    Case(
        "resnext",
        "resnet",
        seeded(lambda: ResNet(Bottleneck, (2, 2, 2), base=8, groups=4)),
        image(),
        EXPECT,
        FROZEN,
        note="conv1 and conv2 lose the same number of channels in every group",
    ),
    Case(
        "resnet_preact",
        "resnet",
        seeded(lambda: ResNet(PreActBlock, (2, 2, 2))),
        image(),
        (*EXPECT, "bn2.*"),
        FROZEN,
        note="several batch norms read one stream; all of them are zeroed with it",
    ),
    Case("resnet50", "resnet", seeded(resnet50), image(3, 224, 224), EXPECT, FROZEN, slow=True),
]
