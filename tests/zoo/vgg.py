"""VGG: stacked 3x3 convolutions, then a classifier over flattened 2x2 or 7x7 maps."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.case import Case, image, seeded


class VGG(nn.Module):
    """``plan`` lists output channels, with 0 for a 2x2 max pool; the pooled map is ``spatial`` by ``spatial``."""

    def __init__(
        self, plan: Sequence[int], spatial: int, hidden: int = 64, classes: int = 10, batch_norm: bool = True
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in plan:
            if outputs == 0:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((spatial, spatial))
        self.classifier = nn.Sequential(
            nn.Linear(inputs * spatial * spatial, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        x = torch.flatten(x, 1)
        return self.classifier(x)


DEEP = (16, 16, 0, 32, 32, 0, 48, 48, 0, 64, 64, 0)
SHALLOW = (12, 0, 24, 24, 0)
EXPECT = ("features.*", "classifier.0.*", "classifier.3.*")
FROZEN = ("classifier.6.*",)

CASES = [
    Case("vgg_bn", "vgg", seeded(lambda: VGG(DEEP, 2)), image(), EXPECT, FROZEN),
    Case("vgg_bn_7x7", "vgg", seeded(lambda: VGG(SHALLOW, 7, hidden=48)), image(), EXPECT, FROZEN),
    Case("vgg_plain", "vgg", seeded(lambda: VGG(SHALLOW, 2, batch_norm=False)), image(), EXPECT, FROZEN),
]
