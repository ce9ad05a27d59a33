"""Fully connected networks: a plain MLP, one with batch norm, and MLP-Mixer."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, features, image, seeded


class MLP(nn.Module):
    def __init__(self, sizes: Sequence[int] = (32, 128, 96, 64, 10), batch_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes[:-1]):
            layers.append(nn.Linear(inputs, outputs, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(outputs))
            layers += [nn.ReLU(), nn.Dropout(0.3)]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))


class MixerMlp(nn.Module):
    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MixerBlock(nn.Module):
    """Mixes across patches (on the transposed tokens), then across channels."""

    def __init__(self, patches: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mix = MixerMlp(patches, 2 * patches)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mix = MixerMlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, side: int = 32, patch: int = 8, dim: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, patch, stride=patch)
        self.blocks = nn.Sequential(*(MixerBlock((side // patch) ** 2, dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(x))
        return self.head(x.mean(dim=1))


CASES = [
    Case("mlp", "mlp", seeded(MLP), features(32), ("layers.*",), ("out.*",)),
    Case("mlp_bn", "mlp", seeded(lambda: MLP(batch_norm=True)), features(32), ("layers.*",), ("out.*",)),
    Case(
        "mixer",
        "mlp",
        seeded(Mixer),
        image(),
        ("blocks.*.fc1.*",),
        ("embed.*", "blocks.*.norm*", "blocks.*.fc2.*", "norm.*", "head.*"),
        note="hidden units of both mixers; token_mix works with the channel axis as a batch axis",
    ),
]
