"""Modules with attributes that state sizes, as users write them: attention, gates, shuffles, tied weights."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Apply(nn.Module):
    """A function as a layer; ``text`` shows what it is in a failing example."""

    def __init__(self, text: str, function: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.text, self.function = text, function

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*values)

    def extra_repr(self) -> str:
        return self.text


class Held(nn.Module):
    """``op(x, tensor)`` with a tensor of the model's own along one axis: a parameter or a buffer."""

    tensor: Tensor

    def __init__(self, op: str, shape: tuple[int, ...], trained: bool) -> None:
        super().__init__()
        self.op, self.trained = op, trained
        value = torch.randn(shape)
        if trained:
            self.tensor = nn.Parameter(value)
        else:
            self.register_buffer("tensor", value)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.tensor if self.op == "mul" else x + self.tensor

    def extra_repr(self) -> str:
        return f"{self.op}, {tuple(self.tensor.shape)}, {'parameter' if self.trained else 'buffer'}"


class LastNorm(nn.Module):
    """Layer norm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LastLinear(nn.Module):
    """A linear layer over the channels of a map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.up(F.relu(self.down(x.mean((2, 3)))))
        return x * self.gate(pooled)[:, :, None, None]


class Shuffle(nn.Module):
    """ShuffleNet's channel shuffle, by view and transpose."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)

    def extra_repr(self) -> str:
        return f"{self.groups}"


class GroupGain(nn.Module):
    """One gain for each group of channels: view into groups, multiply, view back."""

    def __init__(self, channels: int, groups: int, inner: bool) -> None:
        super().__init__()
        self.groups, self.inner = groups, inner
        size = channels // groups if inner else groups
        self.gain = nn.Parameter(torch.randn(1, *((1, size) if inner else (size, 1)), 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return (x.view(n, self.groups, c // self.groups, h, w) * self.gain).view(n, c, h, w)


class Attention(nn.Module):
    """Self-attention with ``heads`` query heads on ``shared`` key and value heads, written in one of four ways."""

    def __init__(self, inputs: int, heads: int, shared: int, depth: int, style: str) -> None:
        super().__init__()
        self.heads, self.shared, self.depth, self.style = heads, shared, depth, style
        self.fused = style == "fused"
        if self.fused:
            self.qkv = nn.Linear(inputs, 3 * heads * depth)
        else:
            self.q = nn.Linear(inputs, heads * depth)
            self.k, self.v = nn.Linear(inputs, shared * depth), nn.Linear(inputs, shared * depth)
        self.out = nn.Linear(heads * depth, inputs)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.depth).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = self.q(x).view(n, t, self.heads, self.depth).transpose(1, 2)
            k = self.k(x).view(n, t, self.shared, self.depth).transpose(1, 2)
            v = self.v(x).view(n, t, self.shared, self.depth).transpose(1, 2)
            if self.shared != self.heads:
                k, v = (y.repeat_interleave(self.heads // self.shared, dim=1) for y in (k, v))
        if self.style == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * self.depth**-0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, -1))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, shared={self.shared}, depth={self.depth}, style={self.style}"


class Gated(nn.Module):
    """A gated MLP whose two halves come from one layer."""

    def __init__(self, inputs: int, hidden: int, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.both, self.out, self.gate = nn.Linear(inputs, 2 * hidden), nn.Linear(hidden, inputs), gate

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).chunk(2, dim=-1)
        return self.out(value * self.gate(gate))


class Tied(nn.Module):
    """Down with a weight and up with its transpose."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(hidden, inputs)), nn.Parameter(torch.randn(hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.weight, self.bias)), self.weight.t())

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}"
