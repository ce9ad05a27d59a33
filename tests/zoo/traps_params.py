"""Traps in how parameters are made and laid out."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from zoo.case import Args, Case, generator, image
from zoo.trapkit import between, trap

Make = Callable[[int], nn.Module]


class Chain(nn.Module):
    """inp -> ReLU -> middle -> ReLU -> out."""

    def __init__(self, inp: nn.Module, middle: nn.Module, out: nn.Module) -> None:
        super().__init__()
        self.inp, self.middle, self.out = inp, middle, out

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.middle(F.relu(self.inp(x)))))


class ScaledConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 1.7 * super().forward(x)


class ShiftedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.3


class StandardisedConv(nn.Conv2d):
    """Every filter is standardised over its inputs, so a filter's columns depend on each other."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = self.weight - mean
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class BatchStandardisedConv(nn.Conv2d):
    """The same by batch norm's own statistics, as norm-free networks write it."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain = torch.full((self.out_channels,), 0.5, dtype=x.dtype)
        weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class InstanceNormedRows(nn.Module):
    """A layer along the width, then statistics over it per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows = nn.Linear(8, width)
        self.norm: nn.Module = nn.InstanceNorm2d(3)
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.rows(x)))


class GroupNormedRows(InstanceNormedRows):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__(width)
        self.norm = nn.GroupNorm(groups, 3, affine=False)


class Hypernetwork(nn.Module):
    """A linear layer makes the convolution's weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.style = nn.Parameter(torch.zeros(5))
        self.generate = nn.Linear(5, width * 27)
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.conv2d(x, self.generate(self.style).view(-1, 3, 3, 3), padding=1))


class Film(nn.Module):
    """Channels are scaled by 1 + gamma and shifted by beta, both made from a condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.gamma, self.beta = nn.Linear(5, width), nn.Linear(5, width)
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.gamma(condition)[..., None, None], self.beta(condition)[..., None, None]
        return self.out(self.conv1(x) * (1 + gamma) + beta)


class FixedKernel(nn.Module):
    """A blur that the model holds as a buffer, one copy per channel."""

    kernel: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.full((3, 3), 1 / 9).repeat(width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=x.shape[1])


def condition_input(batch: int) -> Args:
    source = generator()
    return torch.randn(batch, 3, 8, 8, generator=source), torch.randn(batch, 5, generator=source)


def conv(kind: Callable[..., nn.Module], middle: dict[str, int] | None = None) -> Make:
    """A chain of three convolutions of one kind."""
    extra = middle or {}
    return lambda w: Chain(kind(3, w, 3, padding=1), kind(w, w, 3, padding=1, **extra), kind(w, 4, 1))


def custom_conv(first: type[nn.Conv2d], last: type[nn.Conv2d]) -> Make:
    return lambda w: Chain(first(3, w, 3, padding=1), nn.Identity(), last(w, 4, 3, padding=1))


def normed(first: bool) -> Make:
    def make(width: int) -> nn.Module:
        a, b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        return Chain(weight_norm(a) if first else a, nn.Identity(), b if first else weight_norm(b))

    return make


def spectral(width: int) -> nn.Module:
    first = spectral_norm(nn.Conv2d(3, width, 3, padding=1))
    return Chain(first, nn.Identity(), nn.Conv2d(width, 4, 3, padding=1))


def up(groups: int) -> Make:
    return lambda w: Chain(
        nn.Conv2d(3, w, 3, padding=1), nn.ConvTranspose2d(w, w, 2, 2, groups=groups), nn.Conv2d(w, 4, 1)
    )


def depthwise(width: int) -> nn.Module:
    middle = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
    return Chain(nn.Conv2d(3, width, 3, padding=1), middle, nn.Conv2d(2 * width, 4, 1))


def same_padding(width: int) -> nn.Module:
    circular = nn.Conv2d(width, width, 3, padding=1, padding_mode="circular")
    return Chain(nn.Conv2d(3, width, 3, padding="same"), circular, nn.Conv2d(width, 4, 1, padding="valid"))


BOTH = ("inp.*", "middle.*")
FAMILY = "params"

CASES: list[Case] = [
    trap("conv1d", FAMILY, "expect", conv(nn.Conv1d), BOTH, inputs=image(3, 16)),
    trap("conv3d", FAMILY, "expect", conv(nn.Conv3d), BOTH, inputs=image(3, 4, 4, 4)),
    trap("conv_padding_modes", FAMILY, "expect", same_padding, BOTH),
    trap("conv_grouped", FAMILY, "expect", conv(nn.Conv2d, {"groups": 2}), BOTH, note="equal numbers per group"),
    trap("depth_multiplier", FAMILY, "expect", depthwise, BOTH),
    trap("transposed", FAMILY, "expect", up(1), BOTH, axes={"middle.weight": 1}),
    trap(
        "transposed_grouped",
        FAMILY,
        "expect",
        up(2),
        BOTH,
        axes={"middle.weight": 1},
        note="an output slice of the weight is one channel of every group",
    ),
    trap("subclass_scaled", FAMILY, "expect", custom_conv(ScaledConv, nn.Conv2d), ("inp.*",)),
    trap("subclass_positive_shift", FAMILY, "later", custom_conv(ShiftedConv, nn.Conv2d), ("inp.*",)),
    trap("standardised_producer", FAMILY, "expect", custom_conv(StandardisedConv, nn.Conv2d), ("inp.*",)),
    trap("standardised_consumer", FAMILY, "expect_frozen", custom_conv(nn.Conv2d, StandardisedConv), ("inp.*",)),
    trap("batch_standardised_producer", FAMILY, "expect", custom_conv(BatchStandardisedConv, nn.Conv2d), ("inp.*",)),
    trap(
        "batch_standardised_consumer",
        FAMILY,
        "expect_frozen",
        custom_conv(nn.Conv2d, BatchStandardisedConv),
        ("inp.*",),
    ),
    trap("instance_normed_rows", FAMILY, "expect_frozen", InstanceNormedRows, ("rows.*",)),
    trap("rows_in_one_group", FAMILY, "expect_frozen", lambda w: GroupNormedRows(w, 1), ("rows.*",)),
    trap("rows_in_three_groups", FAMILY, "expect_frozen", lambda w: GroupNormedRows(w, 3), ("rows.*",)),
    trap("weight_norm_producer", FAMILY, "may", normed(True), ("inp.*",), note="zeroing original1 too gives 0 / 0"),
    trap("spectral_norm_producer", FAMILY, "may", spectral, ("inp.*",), note="the power iteration's u is sliced"),
    trap("weight_norm_consumer", FAMILY, "expect_frozen", normed(False), ("inp.*",)),
    trap(
        "hypernetwork", FAMILY, "may", Hypernetwork, ("generate.*", "style"), frozen=("out.*",), note="27 rows a unit"
    ),
    trap("film", FAMILY, "expect", Film, ("conv1.*", "gamma.*", "beta.*"), inputs=condition_input),
    between("fixed_kernel", FAMILY, "expect", make=FixedKernel),
]
