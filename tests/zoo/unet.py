"""U-Net: encoder and decoder joined by concatenated skips, with learned or interpolated upsampling."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, image, seeded


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class LearnedUp(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


class InterpolatedUp(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.reduce(x)


class UNet(nn.Module):
    def __init__(
        self, up: type[LearnedUp] | type[InterpolatedUp], depth: int = 3, base: int = 12, classes: int = 4
    ) -> None:
        super().__init__()
        widths = [base * 2**i for i in range(depth + 1)]
        self.inc = DoubleConv(3, widths[0])
        self.downs = nn.ModuleList(DoubleConv(widths[i], widths[i + 1]) for i in range(depth))
        self.ups = nn.ModuleList(up(widths[i + 1], widths[i]) for i in reversed(range(depth)))
        self.merges = nn.ModuleList(DoubleConv(2 * widths[i], widths[i]) for i in reversed(range(depth)))
        self.outc = nn.Conv2d(base, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inc(x)
        skips: list[Tensor] = []
        for down in self.downs:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))
        for up, merge, skip in zip(self.ups, self.merges, reversed(skips), strict=True):
            x = up(x)
            height, width = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
            x = F.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])
            x = merge(torch.cat([skip, x], dim=1))
        return self.outc(x)


EXPECT = ("inc.*", "downs.*", "ups.*", "merges.*")

CASES = [
    Case(
        "unet",
        "unet",
        seeded(lambda: UNet(LearnedUp)),
        image(),
        EXPECT,
        ("outc.*",),
        axes={"ups.*.up.weight": 1},
    ),
    Case("unet_interpolate", "unet", seeded(lambda: UNet(InterpolatedUp)), image(), EXPECT, ("outc.*",)),
]
