"""Super-resolution: ESPCN (sub-pixel convolution) and an EDSR-like residual network."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.case import Case, image, seeded


class ESPCN(nn.Module):
    def __init__(self, scale: int = 3, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2 * width, 5, padding=2)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, scale * scale, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv1(x))
        x = torch.tanh(self.conv2(x))
        return self.shuffle(self.conv3(x))


class ResBlock(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.conv2(torch.relu(self.conv1(x)))


class EDSR(nn.Module):
    """No batch norm; scaled residuals, one long skip, and a pixel shuffle between two prunable layers."""

    mean: Tensor

    def __init__(self, depth: int = 4, width: int = 24, scale: int = 2) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.40]).view(1, 3, 1, 1))
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(ResBlock(width, 0.1) for _ in range(depth)), nn.Conv2d(width, width, 3, padding=1))
        self.upsample = nn.Sequential(nn.Conv2d(width, width * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x - self.mean)
        x = x + self.body(x)
        return self.tail(self.upsample(x)) + self.mean


CASES = [
    Case("espcn", "superres", seeded(ESPCN), image(1, 16, 16), ("conv1.*", "conv2.*"), ("conv3.*",)),
    Case(
        "edsr",
        "superres",
        seeded(EDSR),
        image(3, 16, 16),
        ("head.*", "body.*", "upsample.0.*"),
        ("tail.*",),
        note="upsample.0 loses blocks of scale**2 rows",
    ),
]
