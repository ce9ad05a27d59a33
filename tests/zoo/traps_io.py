"""Traps in what a model takes in and gives out, and in code that runs beside its main path."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Args, Case, features, generator, images
from zoo.trapkit import trap


class Output(nn.Module):
    """Hands an intermediate feature out beside the result, as a tuple or under a name."""

    def __init__(self, width: int, named: bool) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, width, 3, padding=1)
        self.out = nn.Conv2d(width, 4, 3, padding=1)
        self.named = named

    def forward(self, x: Tensor) -> Any:
        hidden = F.relu(self.conv1(F.relu(self.inner(x))))
        if self.named:
            return {"result": self.out(hidden), "extra": [{"hidden": hidden}]}
        return self.out(hidden), hidden


class PooledOutput(nn.Module):
    """Only a sum over the hidden channels is handed out, to which a zero adds nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.conv1(x)
        return {"result": self.out(hidden), "energy": hidden.square().sum((1, 2, 3))}


class DeepSupervision(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 6, 3, padding=1)
        self.out_early = nn.Linear(width, 4)
        self.out_late = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        early = F.relu(self.conv1(x))
        late = F.relu(self.conv2(early))
        return self.out_early(early.mean((2, 3))), self.out_late(late.mean((2, 3)))


class Siamese(nn.Module):
    """One encoder for both images; takes a nested structure."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, width, 3, padding=1)
        self.out = nn.Linear(width, 4)

    def forward(self, given: dict[str, Any]) -> Tensor:
        left, right = given["pair"]
        a, b = (F.relu(self.encoder(image)).mean((2, 3)) for image in (left, right))
        return self.out((a - b).abs()) * given["weight"]


class Masked(nn.Module):
    """Called by keywords; the mask broadcasts over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, pixels: Tensor, *, mask: Tensor, scale: float = 1.0) -> Tensor:
        return self.out(self.conv1(pixels).masked_fill(mask, 0.0) * scale)


class FilledMask(Masked):
    """Masked positions get a value that is not zero, in every channel."""

    def forward(self, pixels: Tensor, *, mask: Tensor, scale: float = 1.0) -> Tensor:
        return self.out(self.conv1(pixels).masked_fill(mask, -1.0) * scale)


class SecondInput(nn.Module):
    """An input with as many channels as conv1 is added; nobody can zero it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.out = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(self.conv1(x) + y)


class NoGrad(nn.Module):
    """Part of the forward pass runs without gradients."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.conv1(x))
        return self.out(F.relu(self.conv2(x)))


class Unused(nn.Module):
    """One layer is never called, and the result of another is dropped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.uncalled = nn.Conv2d(width, 5, 3)
        self.dropped = nn.Conv2d(width, 5, 1)
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        self.dropped(x)
        return self.out(x)


class SearchMix(nn.Module):
    """Two candidate layers weighed by a softmax over architecture parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_a, self.conv_b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(3, width, 1)
        self.alpha = nn.Parameter(torch.zeros(2))
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.alpha.softmax(0)
        return self.out(weights[0] * self.conv_a(x) + weights[1] * self.conv_b(x))


class Gathered(nn.Module):
    """argmax over the units picks a row of a table."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(12, width)
        self.table = nn.Embedding(width, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table(self.fc(x).argmax(-1)))


def nested(batch: int) -> Args:
    source = generator()
    left, right = (torch.randn(batch, 3, 8, 8, generator=source) for _ in range(2))
    return ({"pair": (left, right), "weight": torch.rand(batch, 1, generator=source) + 0.5},)


def keywords(batch: int) -> Args:
    source = generator()
    pixels = torch.randn(batch, 3, 8, 8, generator=source)
    return {"pixels": pixels, "mask": torch.rand(batch, 1, 8, 8, generator=source) > 0.7}


CONV1 = ("conv1.*",)
INNER = ("inner.*",)
FAMILY = "io"

CASES: list[Case] = [
    trap("output_tuple", FAMILY, "expect_frozen", lambda w: Output(w, False), CONV1, also_expect=INNER),
    trap("output_dict", FAMILY, "expect_frozen", lambda w: Output(w, True), CONV1, also_expect=INNER),
    trap("output_energy", FAMILY, "expect", PooledOutput, CONV1),
    trap("deep_supervision", FAMILY, "expect", DeepSupervision, CONV1, also_expect=("conv2.*",), frozen=("out_*",)),
    trap("nested_input", FAMILY, "expect", Siamese, ("encoder.*",), inputs=nested),
    trap("keyword_mask", FAMILY, "expect", Masked, CONV1, inputs=keywords),
    trap("filled_mask", FAMILY, "expect_frozen", FilledMask, CONV1, inputs=keywords, note="depends on the mask"),
    trap("second_input", FAMILY, "expect_frozen", lambda _: SecondInput(), CONV1, inputs=images(2), resizable=False),
    trap("no_grad_block", FAMILY, "expect", NoGrad, ("conv1.*", "conv2.*")),
    trap("unused", FAMILY, "expect", Unused, CONV1, also_may=("uncalled.*", "dropped.*")),
    trap(
        "search_mix",
        FAMILY,
        "expect",
        SearchMix,
        ("conv_*",),
        frozen=("out.*", "alpha"),
    ),
    trap(
        "argmax_lookup",
        FAMILY,
        "expect_frozen",
        Gathered,
        ("fc.*",),
        also_expect=("table.*",),
        inputs=features(48, 12),
        axes={"table.weight": 1},
    ),
]
