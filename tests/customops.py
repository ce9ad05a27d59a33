"""Custom ops for tests: two honest ones, and one that misbehaves in a way that its arguments choose."""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CALLS = [0]


def _channels(x: Tensor) -> list[int]:
    """Every axis but the first, which is the batch, and the second, which holds the channels."""
    return [0, *range(2, x.ndim)]


def _mixed(x: Tensor) -> Tensor:
    return x + x.sum(1, keepdim=True)


def _switch(condition: Tensor, x: Tensor) -> Tensor:
    return torch.where(condition, _mixed(x), x)


def _silent(x: Tensor) -> Tensor:
    """Which channels hold nothing but zeros."""
    return (x == 0).transpose(0, 1).flatten(1).all(1)


def _counted(x: Tensor, t: float) -> Tensor:
    CALLS[0] += 1
    return x * CALLS[0]


MISCHIEF: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda x, t: x.clone(),
    "mixes": lambda x, t: _mixed(x),
    "mixes large values": lambda x, t: _switch(x.abs().amax() > t, x),
    "mixes small values": lambda x, t: _switch(x.abs().amax() < t, x),
    "mixes where the mean is large": lambda x, t: _switch(x.mean() > min(t, 100.0), x),
    "mixes where a channel is zero": lambda x, t: _switch(_silent(x).any(), x),
    "mixes where two channels are zero": lambda x, t: _switch(_silent(x).sum() > 1, x),
    "mixes in fp32": lambda x, t: _mixed(x) if x.dtype is torch.float32 else x.clone(),
    "mixes one pair": lambda x, t: x + torch.cat([torch.zeros_like(x[:, 1:]), x[:, :1]], 1),
    "mixes wide images": lambda x, t: _mixed(x) if x.shape[-1] > 12 else x.clone(),
    "divides by the count": lambda x, t: x / x.shape[1],
    "knows even counts": lambda x, t: x * (1 + x.shape[1] % 2),
    "knows four channels": lambda x, t: x * (2 if x.shape[1] == 4 else 1),
    "adds positions": lambda x, t: x + torch.arange(x.shape[1], dtype=x.dtype).view(-1, *[1] * (x.ndim - 2)),
    "sorts": lambda x, t: x.sort(1)[0],
    "flips": lambda x, t: x.flip(1),
    "rolls": lambda x, t: x.roll(1, 1),
    "shuffles where large": lambda x, t: x.flip(1) if bool((x.abs() > t).any()) else x.clone(),
    "normalises": lambda x, t: x / (x.square().mean(1, keepdim=True) + 1e-3).sqrt(),
    "gates by the first": lambda x, t: x * x[:, :1].sigmoid(),
    "softmax": lambda x, t: x.softmax(1),
    "draws": lambda x, t: x * torch.rand_like(x),
    "counts calls": _counted,
    "adds a constant": lambda x, t: x + t,
    "is a sigmoid": lambda x, t: x.sigmoid(),
    "divides by itself": lambda x, t: x / x,
    "is a logarithm": lambda x, t: (x.abs() + 1).log(),
    "folds the batch": lambda x, t: x - x.mean(0, keepdim=True),
    "clamps by its own mean": lambda x, t: x.clamp(min=x.mean(_channels(x), keepdim=True)),
}
EVEN_BLIND = ("draws", "counts calls")
"""Kinds whose results cannot be compared, as they differ from call to call."""


@torch.library.custom_op("coppice_tests::mischief", mutates_args=())
def mischief(x: Tensor, kind: str, t: float) -> Tensor:
    """``x``, changed in the way that ``kind`` names, at the threshold ``t``."""
    return MISCHIEF[kind](x, t).to(x.dtype)


@mischief.register_fake
def _(x: Tensor, kind: str, t: float) -> Tensor:
    return torch.empty_like(x)


def _broadcast(x: Tensor, y: Tensor) -> Tensor:
    """``y`` of one number a channel, or of the shape of ``x``, as the latter."""
    return y.view(-1, *[1] * (x.ndim - 2)).expand_as(x) if y.ndim == 1 else y


PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, y: x + y,
    "product": lambda x, y: x * y,
    "quotient": lambda x, y: x / (y.abs() + 1),
    "larger": lambda x, y: torch.maximum(x, y),
    "sum with the flipped": lambda x, y: x + y.flip(1),
    "product with the mean": lambda x, y: x * y.mean(1, keepdim=True),
    "product with the sign of the sum": lambda x, y: x * y.sum(1, keepdim=True).sign(),
    "flipped where the other is large": lambda x, y: torch.where((y.abs() > 40).any(), x.flip(1), x),
    "flipped where the other has a zero": lambda x, y: torch.where((y == 0).any(), x.flip(1), x),
    "sorted by the other": lambda x, y: x.gather(1, y.argsort(1)),
    "the first alone": lambda x, y: x.clone(),
    "the first, by the length of both": lambda x, y: x / (x.shape[1] + y.shape[1]),
    "outer product, summed": lambda x, y: torch.einsum("bc...,bd...->bc...", x, y),
    "by the dot product": lambda x, y: x * (x * y).sum(1, keepdim=True).tanh(),
}


@torch.library.custom_op("coppice_tests::pair", mutates_args=())
def pair(values: list[Tensor], kind: str) -> list[Tensor]:
    """Two results: what ``kind`` makes of both tensors, and the second as it was."""
    x, y = values
    return [PAIRS[kind](x, _broadcast(x, y)).clone(), y.clone()]


@pair.register_fake
def _(values: list[Tensor], kind: str) -> list[Tensor]:
    return [torch.empty_like(value) for value in values]


@torch.library.custom_op("coppice_tests::swish", mutates_args=())
def swish(x: Tensor, beta: float = 1.0) -> Tensor:
    """x sigmoid(beta x)."""
    return x * torch.sigmoid(beta * x)


@swish.register_fake
def _(x: Tensor, beta: float = 1.0) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("coppice_tests::affine", mutates_args=())
def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Channels (axis 1) scaled and shifted."""
    return x * scale.view(-1, *[1] * (x.ndim - 2)) + shift.view(-1, *[1] * (x.ndim - 2))


@affine.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("coppice_tests::parts", mutates_args=())
def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The positive and the negative part."""
    return x.clamp(min=0), x.clamp(max=0)


@parts.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("coppice_tests::scale_", mutates_args=("x",))
def scale_(x: Tensor, by: float) -> None:
    """``x`` scaled in place."""
    x.mul_(by)


@torch.library.custom_op("coppice_tests::secretly", mutates_args=())
def secretly(x: Tensor) -> Tensor:
    """Doubles its input, and says nothing of it."""
    x.mul_(2)
    return x.clone()


@secretly.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
