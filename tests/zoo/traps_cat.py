"""Traps in splitting, concatenating, stacking and padding the channel axis."""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case
from zoo.trapkit import Op2, between, trap, two


class Halves(nn.Module):
    """Parts of the channels go to different consumers; ``parts`` are their sizes."""

    def __init__(self, width: int, parts: tuple[int, int], cut: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.cut = cut
        self.out_a = nn.Conv2d(parts[0], 4, 3, padding=1)
        self.out_b = nn.Conv2d(parts[1], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cut(self.conv1(x))
        return self.out_a(F.relu(a)) + self.out_b(b)


class SplitAttention(nn.Module):
    """Two copies of every channel are weighed against each other by a softmax over the copies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2 * width, 3, padding=1)
        self.fc1 = nn.Linear(width, 6)
        self.fc2 = nn.Linear(6, 2 * width)
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])
        scores = self.fc2(F.relu(self.fc1(x.sum(1).mean((2, 3)))))
        weights = scores.view(x.shape[0], 2, -1).softmax(1)
        return self.out((x * weights[..., None, None]).sum(1))


class InputCat(nn.Module):
    """The input joins by concatenation, and by coordinates that no layer makes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.out = nn.Conv2d(width + 4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        ramp = torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype, device=y.device).expand(y.shape[0], 1, *y.shape[2:])
        return self.out(torch.cat([y, x, ramp], 1))


def chunk_swap(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.cat([b, a], dim=1)


def focus(x: Tensor) -> Tensor:
    rows = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
    return torch.cat(rows, 1)


def maxout(x: Tensor) -> Tensor:
    return x.view(x.shape[0], -1, 2, *x.shape[2:]).amax(2)


def twice(width: int) -> int:
    return 2 * width


STACKS: dict[str, Op2] = {
    "cat_two": lambda a, b: torch.cat([a, b], 1),
    "stack_tiled": lambda a, b: torch.stack([a, b], 1).flatten(1, 2),
    "stack_interleaved": lambda a, b: torch.stack([a, b], 2).flatten(1, 2),
}

CASES: list[Case] = [
    *(two(name, "cat", "expect", op, read=twice) for name, op in STACKS.items()),
    between("chunk_swap", "cat", "expect", chunk_swap),
    between("cat_negated", "cat", "expect", lambda x: F.relu(torch.cat([x, -x], 1)), read=twice),
    between("chunk_glu", "cat", "expect", lambda x: F.glu(x, dim=1), made=twice),
    between("maxout", "cat", "expect", maxout, made=twice),
    between("focus", "cat", "expect", focus, read=lambda w: 4 * w),
    between("pad_zero", "cat", "expect", lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), read=lambda w: w + 3),
    between(
        "pad_one",
        "cat",
        "expect",
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=1.0),
        read=lambda w: w + 3,
        note="the consumer keeps its columns for the padded ones",
    ),
    trap(
        "chunk_unequal_use",
        "cat",
        "expect",
        lambda w: Halves(w, (w // 2, w // 2), lambda x: x.chunk(2, 1)),
        ("conv1.*",),
        frozen=("out_*",),
        note="the halves may lose different numbers of channels if chunk becomes split",
    ),
    trap(
        "split_unequal_sizes",
        "cat",
        "expect",
        lambda w: Halves(w, (w // 2 - 1, w // 2 + 1), lambda x: x.split([x.shape[1] // 2 - 1, x.shape[1] // 2 + 1], 1)),
        ("conv1.*",),
        frozen=("out_*",),
    ),
    trap("split_attention", "cat", "expect", SplitAttention, ("conv1.*", "fc2.*"), also_expect=("fc1.*",)),
    trap("input_cat", "cat", "expect", InputCat, ("conv1.*",)),
]
