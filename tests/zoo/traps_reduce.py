"""Traps that look across channels: reductions, norms and sorting."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case
from zoo.trapkit import Op, Op2, between, two


class ChannelsLastNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)
        return x * self.weight[:, None, None]


class ConvAlongChannels(nn.Module):
    """The channel axis is a spatial axis of this convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unsqueeze(1)).squeeze(1)


TO_ONE: dict[str, Op] = {  # frozen; the consumer reads one channel
    "max": lambda x: x.max(1, keepdim=True).values,
    "min": lambda x: x.amin(1, keepdim=True),
    "median": lambda x: x.median(1, keepdim=True).values,
    "argmax": lambda x: x.argmax(1, keepdim=True).to(x.dtype),
    "prod": lambda x: x.prod(1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "var": lambda x: x.var(1, keepdim=True),
}
TO_ALL: dict[str, Op] = {  # frozen; the consumer reads every channel
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, dim=1),
    "std": lambda x: x / (x.std(1, keepdim=True) + 1e-3),
    "standardise": lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-3),
    "centre": lambda x: x - x.mean(1, keepdim=True),
    "sort": lambda x: x.sort(1).values,
    "cumsum": lambda x: x.cumsum(1),
    "neighbour_difference": lambda x: x - x.roll(1, 1),
    "local_response_norm": lambda x: F.local_response_norm(x, 3, alpha=0.5),
}
FROZEN_MODULES: dict[str, Callable[[int], nn.Module]] = {
    "conv_along_channels": lambda _: ConvAlongChannels(),
}
AVERAGES: dict[str, Callable[[int], nn.Module]] = {  # a zero adds nothing to a sum whose divisor stays
    "group_norm_one": lambda w: nn.GroupNorm(1, w),
    "layer_norm": ChannelsLastNorm,
}
SUMS: dict[str, Op] = {  # a zero adds nothing
    "sum": lambda x: x.sum(1, keepdim=True),
    "channel_norm": lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
}
SUM_PAIRS: dict[str, Op2] = {
    "dot_product": lambda a, b: (a * b).sum(1, keepdim=True),
    "einsum_dot": lambda a, b: torch.einsum("bchw,bchw->bhw", a, b).unsqueeze(1),
    "cosine_similarity": lambda a, b: F.cosine_similarity(a, b, dim=1).unsqueeze(1),
}
NORMS = ("op.*",)


def one(_: int) -> int:
    return 1


CASES: list[Case] = [
    *(between(name, "reduce", "expect_frozen", op, read=one) for name, op in TO_ONE.items()),
    *(between(name, "reduce", "expect_frozen", op) for name, op in TO_ALL.items()),
    *(between(name, "reduce", "expect_frozen", make=make, frozen=NORMS) for name, make in FROZEN_MODULES.items()),
    *(between(name, "reduce", "expect", make=make, also=NORMS, resizable=False) for name, make in AVERAGES.items()),
    *(between(name, "reduce", "expect", op, read=one) for name, op in SUMS.items()),
    *(two(name, "reduce", "expect", op, read=one) for name, op in SUM_PAIRS.items()),
    between("topk", "reduce", "expect_frozen", lambda x: x.topk(4, dim=1).values, read=lambda _: 4),
    between(
        "mean",
        "reduce",
        "expect",
        lambda x: x.mean(1, keepdim=True),
        read=one,
        note="the divisor must stay",
        resizable=False,
    ),
    between(
        "mean_by_hand",
        "reduce",
        "may",
        lambda x: x.sum(1, keepdim=True) / x.shape[1],
        read=one,
        note="exact if the traced channel count stays the literal it was",
        resizable=False,
    ),
    between("max_after_relu", "reduce", "may", lambda x: F.relu(x).amax(1, keepdim=True), read=one, note="never < 0"),
    between("l2_normalize", "reduce", "expect", lambda x: F.normalize(x, dim=1)),
    between("divide_by_sum", "reduce", "expect", lambda x: F.relu(x) / (F.relu(x).sum(1, keepdim=True) + 1e-2)),
    between("instance_norm", "reduce", "expect", make=lambda w: nn.InstanceNorm2d(w, affine=True), also=NORMS),
    between("group_norm_single", "reduce", "expect", make=lambda w: nn.GroupNorm(w, w), also=NORMS),
    between(
        "group_norm", "reduce", "may", make=lambda w: nn.GroupNorm(w // 2, w), also=NORMS, note="whole groups only"
    ),
    between("rms_norm", "reduce", "expect", make=RmsNorm, also=NORMS, note="the divisor must stay", resizable=False),
    between(
        "layer_norm_spatial",
        "reduce",
        "later",
        make=lambda _: nn.LayerNorm([8, 8]),
        frozen=NORMS,
        note="its bias map, shared by all channels, reaches the consumer",
    ),
    between("layer_norm_all", "reduce", "expect", make=lambda w: nn.LayerNorm([w, 8, 8]), also=NORMS, resizable=False),
]
