"""The networks of the quality benchmarks: small residual ones, and the CIFAR-10 variants that papers prune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Output channels of VGG-16's convolutions; 0 is a 2x2 max pool."""


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut: (N, in, H, W) -> (N, out, H/stride, W/stride).

    Where the shape changes the shortcut is a 1x1 convolution, with batch norm or, as ``project="bias"``, without.
    ``same`` pads as TensorFlow does: with stride 2 one row and column at the end only.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, *, project: str = "norm", same: bool = False
    ) -> None:
        super().__init__()
        self.uneven = same and stride == 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 0 if self.uneven else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=project == "bias")
            if project == "norm":
                self.shortcut = nn.Sequential(self.shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(F.pad(x, (0, 1, 0, 1)) if self.uneven else x)))
        y = F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return y


class ResNet(nn.Module):
    """(N, inputs, H, W) -> (N, 10) logits: a stem, ``depths[i]`` residual blocks of ``widths[i]`` channels, a head."""

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        *,
        inputs: int = 3,
        project: str = "norm",
        same: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(Residual(channels, width, stride, project=project, same=same))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class VGG(nn.Module):
    """VGG-16 with batch norm for 32x32 images: (N, 3, 32, 32) -> (N, 10) logits, two hidden layers of 512."""

    def __init__(self, plan: Sequence[int] = VGG16, hidden: int = 512) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in plan:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def resnet18() -> ResNet:
    """ResNet-18 with the 3x3 stem used on CIFAR: 11.2 M parameters, 556 M MACs at 32x32."""
    return ResNet((64, 128, 256, 512), (2, 2, 2, 2))


def resnet20() -> ResNet:
    """ResNet-20 (He et al., 2016, section 4.2) with projection shortcuts: 0.27 M parameters, 41 M MACs at 32x32."""
    return ResNet((16, 32, 64), (3, 3, 3))


def resnet8() -> ResNet:
    """ResNet8 of MLPerf Tiny: 12.5 M MACs at 32x32, inputs 0..255, TensorFlow's padding, batch-norm epsilon 1e-3."""
    model = ResNet((16, 32, 64), (1, 1, 1), project="bias", same=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    return model


def resnet8_weights(file: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The state dict of `resnet8` from ``resnet8_cifar10_fp32_bn.npz``, whose convolution biases go into the norms."""
    state: dict[str, Tensor] = {}

    def norm(theirs: str, conv: str, bn: str) -> None:
        state[f"{conv}.weight"] = torch.from_numpy(file[f"{theirs}.weight"])
        state[f"{bn}.weight"] = torch.from_numpy(file[f"{theirs}.bn.gamma"])
        state[f"{bn}.bias"] = torch.from_numpy(file[f"{theirs}.bn.beta"])
        state[f"{bn}.running_mean"] = torch.from_numpy(file[f"{theirs}.bn.mean"] - file[f"{theirs}.bias"])
        state[f"{bn}.running_var"] = torch.from_numpy(file[f"{theirs}.bn.var"])
        state[f"{bn}.num_batches_tracked"] = torch.tensor(0)

    norm("stem", "stem.0", "stem.1")
    for stage in range(3):
        for position in (1, 2):
            norm(f"s{stage + 1}c{position}", f"blocks.{stage}.conv{position}", f"blocks.{stage}.bn{position}")
        if stage:
            for part in ("weight", "bias"):
                state[f"blocks.{stage}.shortcut.{part}"] = torch.from_numpy(file[f"s{stage + 1}skip.{part}"])
    state |= {f"head.{part}": torch.from_numpy(file[f"fc.{part}"]) for part in ("weight", "bias")}
    return state
