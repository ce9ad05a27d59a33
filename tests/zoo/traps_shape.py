"""Traps in views, slices and permutations of the channel axis."""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case
from zoo.trapkit import Op, between, trap


class Permute(nn.Module):
    """A fixed permutation of the channels, held in a buffer."""

    order: Tensor

    def __init__(self, width: int, index_select: bool) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(width))
        self.index_select = index_select

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order) if self.index_select else x[:, self.order]


class BatchMix(nn.Module):
    """One filter for all channels: batch and channel are merged into the batch axis."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.filter = nn.Conv2d(1, 1, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return self.filter(x.reshape(batch * channels, 1, height, width)).view(batch, channels, height, width)


class TokenMix(nn.Module):
    """A linear layer over positions, with the channel axis as a batch axis."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(2)).view_as(x)


class IntoLinear(nn.Module):
    """conv1, a reshaping op, and a linear layer over ``per_channel`` features of every channel."""

    def __init__(self, width: int, per_channel: int, op: Op) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.op = op
        self.out = nn.Linear(width * per_channel, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.op(self.conv1(x)))


class ChannelsLastLinear(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.fc(x.movedim(1, -1))).movedim(-1, 1)


def einops_chain(x: Tensor) -> Tensor:
    """b (g c) h w -> b c g (h w), gated per channel, and back."""
    batch, channels, height, width = x.shape
    y = x.view(batch, 2, channels // 2, height * width).permute(0, 2, 1, 3)
    y = y * torch.sigmoid(y.mean(-1, keepdim=True))
    return y.permute(0, 2, 1, 3).reshape(batch, channels, height, width)


def shuffle(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def overwrite(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 1.0
    return x


KEEPS: dict[str, Op] = {  # the consumer reads as many channels as conv1 makes
    "flip": lambda x: x.flip(1),
    "flatten_unflatten": lambda x: x.flatten(1).unflatten(1, (x.shape[1], *x.shape[2:])),
    "squeeze_unsqueeze": lambda x: x.unsqueeze(2).unsqueeze(-1).squeeze(2).squeeze(-1),
    "einops_chain": einops_chain,
    "channel_shuffle": shuffle,
}
DOUBLES: dict[str, Op] = {
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "expand_front": lambda x: x.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "expand_back": lambda x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(x.shape[0], -1, *x.shape[2:]),
}


def twice(width: int) -> int:
    return 2 * width


CASES: list[Case] = [
    *(between(name, "shape", "expect", op) for name, op in KEEPS.items()),
    *(between(name, "shape", "expect", op, read=twice) for name, op in DOUBLES.items()),
    between("pixel_shuffle", "shape", "expect", lambda x: F.pixel_shuffle(x, 2), made=lambda w: 4 * w),
    between("pixel_unshuffle", "shape", "expect", lambda x: F.pixel_unshuffle(x, 2), read=lambda w: 4 * w),
    between("channels_last_linear", "shape", "expect", make=ChannelsLastLinear, also=("op.fc.*",)),
    between("slice_prefix", "shape", "expect", lambda x: x[:, :4], read=lambda _: 4, note="channels 4 to 7 are dead"),
    between("select_one", "shape", "may", lambda x: x[:, 2].unsqueeze(1), read=lambda _: 1, resizable=False),
    between("slice_stride", "shape", "may", lambda x: x[:, ::2], read=lambda w: w // 2),
    between("roll", "shape", "may", lambda x: x.roll(2, 1), note="the shift counts kept channels"),
    between("unbind", "shape", "may", lambda x: torch.stack([c * c.tanh() for c in x.unbind(1)], 1)),
    between("overwrite_one", "shape", "may", overwrite, note="channel 0 becomes a constant"),
    between("index_select", "shape", "may", make=lambda w: Permute(w, True), resizable=False),
    between("advanced_index", "shape", "may", make=lambda w: Permute(w, False), resizable=False),
    between("gather_list", "shape", "may", lambda x: x[:, [3, 0, 6, 1]], read=lambda _: 4, resizable=False),
    between("batch_channel_mix", "shape", "may", make=lambda _: BatchMix(False), frozen=("op.*",)),
    between(
        "batch_channel_mix_bias",
        "shape",
        "later",
        make=lambda _: BatchMix(True),
        frozen=("op.*",),
        note="the filter's bias reaches the consumer",
    ),
    between("token_mix", "shape", "expect", make=lambda _: TokenMix(False), frozen=("op.*",)),
    between(
        "token_mix_bias",
        "shape",
        "later",
        make=lambda _: TokenMix(True),
        frozen=("op.*",),
        note="a constant per position reaches the consumer",
    ),
    trap(
        "flatten_channels_last",
        "shape",
        "expect",
        lambda w: IntoLinear(w, 64, lambda x: x.permute(0, 2, 3, 1).flatten(1)),
        ("conv1.*",),
    ),
    trap("flatten_linear", "shape", "expect", lambda w: IntoLinear(w, 64, lambda x: torch.flatten(x, 1)), ("conv1.*",)),
    trap(
        "unfold_linear",
        "shape",
        "expect",
        lambda w: IntoLinear(w, 9, lambda x: F.unfold(x, 3, padding=1).transpose(1, 2)),
        ("conv1.*",),
    ),
]
