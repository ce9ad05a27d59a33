"""Traps in what the model holds beside its parameters: vectors go with their unit, tables do not."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, features, generator
from zoo.trapkit import between, trap

FAMILY = "buffers"


def _vector(width: int, low: float = 0.5) -> Tensor:
    return torch.rand(width, generator=generator()) + low


class FrozenNorm(nn.Module):
    """A batch norm whose scale, shift and statistics are all buffers, as detectors hold theirs."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, _vector(width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        scale = weight * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return F.relu(x * scale + (bias - self.running_mean.reshape(1, -1, 1, 1) * scale))


class Whitened(nn.Module):
    """Divided by a vector: zeroed, it would make 0 / 0."""

    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("deviation", _vector(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / self.deviation.view(1, -1, 1, 1)


class Gate(nn.Module):
    """sigmoid(0) = 1/2 of a vector that is a buffer, times the channel: zero where the channel is."""

    gate: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("gate", _vector(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate.sigmoid().view(1, -1, 1, 1)


class Frequencies(nn.Module):
    """Sines and cosines of fixed frequencies: a vector that no parameter stands beside is no family."""

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequency", _vector(width))
        self.hidden, self.out = nn.Linear(2 * width, 12), nn.Linear(12, 3)

    def forward(self, t: Tensor) -> Tensor:
        angle = t * self.frequency
        return self.out(F.relu(self.hidden(torch.cat([angle.sin(), angle.cos()], -1))))


class KeyBias(nn.Module):
    """Queries and values have a bias, keys a vector of zeros in its place; heads of four."""

    zeros: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("zeros", torch.zeros(width))
        self.out = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.zeros, self.v_bias])
        qkv = torch.unflatten(F.linear(x, self.qkv.weight, bias), -1, (3, -1, 4)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).flatten(2))


CASES: list[Case] = [
    between("frozen_batch_norm", FAMILY, "expect", make=FrozenNorm, resizable=False),
    between("buffer_divisor", FAMILY, "may", make=Whitened),
    between("buffer_gate", FAMILY, "expect", make=Gate),
    trap("buffer_frequencies", FAMILY, "expect", Frequencies, ("hidden.*",), inputs=features(1), resizable=False),
    trap(
        "key_bias_buffer",
        FAMILY,
        "expect",
        KeyBias,
        ("qkv.*", "q_bias", "v_bias"),
        inputs=features(6, 8),
        resizable=False,
    ),
]
