"""Calls that are linear in their weight, as a matrix product: ``result = columns(input) @ weight.flatten(1).T + bias``.

The columns are float[positions, inputs x window]: one row for every position of the result, in row-major order, where
the result's channels are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from coppice.core.calls import Call
from coppice.core.graph import value_of


@dataclass(frozen=True)
class Columns:
    """How a call's input becomes the matrix that its weight multiplies.

    ``of`` takes the call and its input; ``channel`` is the axis of the result that axis 0 of the weight makes;
    ``refuse`` says why a call cannot be written so (None: it can).
    """

    of: Callable[[Call, Tensor], Tensor]
    channel: Callable[[Call], int]
    refuse: Callable[[Call], str | None] = lambda _: None


def _flat(call: Call, x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _no_batch(call: Call, rank: int) -> str | None:
    return "its input has no batch axis" if len(value_of(call["input"]).shape) < rank else None


LINEAR = Columns(_flat, lambda _: -1, lambda call: _no_batch(call, 2))


def _unfolded(call: Call, x: Tensor) -> Tensor:
    """The windows of a convolution: (N, C, *space) -> [N * prod(positions), C * prod(window)]."""
    window = value_of(call["weight"]).shape[2:]
    rank = len(window)
    stride, dilation = (_each(call[name], rank) for name in ("stride", "dilation"))
    x = F.pad(x, _padding(call["padding"], window, dilation))
    for k, (size, step, gap) in enumerate(zip(window, stride, dilation, strict=True)):
        x = x.unfold(2 + k, gap * (size - 1) + 1, step)[..., ::gap]
    positions = range(2, 2 + rank)
    x = x.permute(0, *positions, 1, *range(2 + rank, 2 + 2 * rank))
    return x.reshape(-1, math.prod(x.shape[rank + 1 :]))


def _padding(padding: Any, window: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """As `torch.nn.functional.pad` takes it: the last axis first, before and after."""
    if isinstance(padding, str):
        total = [gap * (size - 1) if padding == "same" else 0 for size, gap in zip(window, dilation, strict=True)]
        sides = [(amount // 2, amount - amount // 2) for amount in total]
    else:
        sides = [(amount, amount) for amount in _each(padding, len(window))]
    return [amount for side in reversed(sides) for amount in side]


def _each(numbers: Any, rank: int) -> list[int]:
    given: list[int] = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
    return given * rank if len(given) == 1 else given


def _no_matrix(call: Call) -> str | None:
    return "it is grouped" if call["groups"] != 1 else _no_batch(call, len(value_of(call["weight"]).shape))


CONVOLUTION = Columns(_unfolded, lambda _: 1, _no_matrix)
