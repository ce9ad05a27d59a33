"""Norms of the user's own classes that average over more positions than they see: the rest left, and was zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CountedLayerNorm(nn.LayerNorm):
    """A layer norm over ``count`` positions of which only ``normalized_shape[0]`` are left, the others being zero."""

    count: int
    axis = -1

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name that nn.LayerNorm gives it)
        x = input.movedim(self.axis, -1)
        present = x.shape[-1]
        more = (0, self.count - present)
        weight = None if self.weight is None else F.pad(self.weight, more)
        bias = None if self.bias is None else F.pad(self.bias, more)
        y = F.layer_norm(F.pad(x, more), (self.count,), weight, bias, self.eps)[..., :present]
        return y.movedim(-1, self.axis)


class CountedChannelNorm(CountedLayerNorm):
    """`CountedLayerNorm` over axis 1: of a map [batch, channels, height, width], or of [batch, channels, length]."""

    axis = 1


class CountedGroupNorm(nn.GroupNorm):
    """A group norm with one group over ``count`` channels of which ``num_channels`` are left, the others being zero."""

    count: int

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name that nn.GroupNorm gives it)
        present = input.shape[1]
        more = (0, self.count - present)
        weight = None if self.weight is None else F.pad(self.weight, more)
        bias = None if self.bias is None else F.pad(self.bias, more)
        wide = F.pad(input, (*[0] * (2 * input.ndim - 4), *more))
        return F.group_norm(wide, 1, weight, bias, self.eps)[:, :present]


@dataclass(frozen=True)
class Scaled:
    """A hook that multiplies by ``factor``: the first input as a forward pre-hook, the result as a forward hook."""

    factor: float

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], *result: Any) -> Any:
        return result[0] * self.factor if result else (inputs[0] * self.factor, *inputs[1:])


def keep_count(norm: nn.Module, present: int, full: int) -> None:
    """Let ``norm``, which sees ``present`` positions, average over ``full`` of which the others are zero.

    A layer norm becomes a `CountedLayerNorm`, a group norm a `CountedGroupNorm`. Any other is taken for a norm by the
    root of a mean square: with a = sqrt(present / full), ``norm(a x) / a`` has the sum of squares over ``full`` under
    the root, and the same epsilon. Whoever calls this compares the result with the graph.
    """
    if isinstance(norm, nn.LayerNorm):
        norm.__class__ = CountedChannelNorm if _channels_first(norm, present) else CountedLayerNorm
        norm.count = full  # type: ignore[assignment]
        return
    if isinstance(norm, nn.GroupNorm) and norm.num_groups == 1:
        norm.__class__ = CountedGroupNorm
        norm.count = full  # type: ignore[assignment]
        return
    factor = math.sqrt(present / full)
    norm.register_forward_pre_hook(Scaled(factor))
    norm.register_forward_hook(Scaled(1 / factor))


def _channels_first(norm: nn.LayerNorm, present: int) -> bool:
    """Whether a subclass of layer norm takes its positions along axis 1: whether it runs on values of that form."""
    if type(norm) is nn.LayerNorm:
        return False
    parameter = next(norm.parameters(), torch.zeros(()))
    for shape in ((1, present, 1, present + 1), (1, present, present + 1)):
        try:
            with torch.no_grad():
                norm(torch.zeros(shape, dtype=parameter.dtype, device=parameter.device))
        except RuntimeError:
            continue
        return True
    return False
