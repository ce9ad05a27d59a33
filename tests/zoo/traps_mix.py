"""Traps that mix channels with each other, with other tensors or through attention."""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case
from zoo.trapkit import Op, between, trap, two


class EinsumMix(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(width, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", x, self.mix)


class EinsumBuffer(nn.Module):
    basis: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.randn(width, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", x, self.basis)


class GramFlatten(nn.Module):
    """The Gram matrix of the channels, flattened into a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.out = nn.Linear(width * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2)
        return self.out((torch.bmm(x, x.transpose(1, 2)) / x.shape[-1]).flatten(1))


class Codebook(nn.Module):
    """Squared distances from every position to learned codes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(5, width))

    def forward(self, x: Tensor) -> Tensor:
        difference = x.unsqueeze(1) - self.codes[None, :, :, None, None]
        return difference.square().sum(2)


class BroadcastAdd(nn.Module):
    """One map is added to all channels, so zeroing a channel leaves that map behind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bias_map = nn.Conv2d(3, 1, 1)
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv1(x) + self.bias_map(x))


class InputResidual(nn.Module):
    """The block's input, which nobody can zero, is added to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 3, 3, padding=1)
        self.out = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.conv1(F.relu(self.inner(x))))


class ChannelAttention(nn.Module):
    """Gates channels by a small MLP on pooled features; ``gate`` is the last activation."""

    def __init__(self, width: int, gate: Op) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.fc1 = nn.Linear(width, 6)
        self.fc2 = nn.Linear(6, width)
        self.gate = gate
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        gate = self.gate(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return self.out(x * gate[:, :, None, None])


def cross_covariance(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    scores = (flat @ flat.transpose(1, 2)).softmax(-1)
    return (scores @ flat).view_as(x)


def gram_mix(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return (torch.bmm(flat, flat.transpose(1, 2)) @ flat / flat.shape[-1]).view_as(x)


def outer_product(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1, 2)


CASES: list[Case] = [
    between("cross_covariance_attention", "mix", "expect_frozen", cross_covariance),
    between("einsum_mix", "mix", "expect", make=EinsumMix, read=lambda _: 5, also=("op.mix",), axes={"op.mix": 1}),
    between("einsum_buffer", "mix", "expect", make=EinsumBuffer, read=lambda _: 5),
    between(
        "codebook",
        "mix",
        "may",
        make=Codebook,
        read=lambda _: 5,
        also=("op.codes",),
        axes={"op.codes": 1},
        note="codes lose a column with the unit",
    ),
    between("gram_mix", "mix", "expect", gram_mix),
    two("outer_product", "mix", "expect", outer_product, read=lambda w: w * w),
    trap("gram_flatten", "mix", "may", GramFlatten, ("conv1.*",), note="a unit is a row and a column"),
    trap("broadcast_add", "mix", "expect_frozen", BroadcastAdd, ("conv1.*",), frozen=("out.*", "bias_map.*")),
    trap(
        "input_residual",
        "mix",
        "expect_frozen",
        lambda _: InputResidual(),
        ("conv1.*",),
        also_expect=("inner.*",),
        resizable=False,
    ),
    trap(
        "gate_sigmoid",
        "mix",
        "expect",
        lambda w: ChannelAttention(w, torch.sigmoid),
        ("conv1.*", "fc2.*"),
        also_expect=("fc1.*",),
    ),
    trap(
        "gate_softmax",
        "mix",
        "expect_frozen",
        lambda w: ChannelAttention(w, lambda x: x.softmax(1)),
        ("conv1.*", "fc2.*"),
        also_expect=("fc1.*",),
    ),
]
