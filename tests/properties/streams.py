"""Blocks of sequence models: residual streams under norms, rotary grouped-query attention, learned tokens."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


class HandRMS(nn.Module):
    """RMS norm in plain tensor operations, as the models of transformers have it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": lambda size: nn.RMSNorm(size, eps=1e-6),
    "rms by hand": HandRMS,
    "layer without affine": lambda size: nn.LayerNorm(size, elementwise_affine=False),
}


class Rotary(nn.Module):
    """Causal self-attention of ``heads`` query heads on ``shared`` key heads, with rotary positions."""

    def __init__(self, inputs: int, heads: int, shared: int, depth: int) -> None:
        super().__init__()
        self.heads, self.shared, self.depth = heads, shared, depth
        self.q, self.out = nn.Linear(inputs, heads * depth), nn.Linear(heads * depth, inputs)
        self.k, self.v = nn.Linear(inputs, shared * depth), nn.Linear(inputs, shared * depth, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        speed = 1.0 / 10 ** (torch.arange(0, self.depth, 2, device=x.device) / self.depth)
        angle = torch.outer(torch.arange(t, device=x.device), speed).to(x.dtype)
        cos, sin = (torch.cat([f, f], -1) for f in (angle.cos(), angle.sin()))
        q = self.q(x).view(n, t, self.heads, self.depth).transpose(1, 2)
        k, v = (f(x).view(n, t, self.shared, self.depth).transpose(1, 2) for f in (self.k, self.v))
        q, k = (y * cos + turned(y) * sin for y in (q, k))
        k, v = (y[:, :, None].expand(-1, -1, self.heads // self.shared, -1, -1).flatten(1, 2) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, shared={self.shared}, depth={self.depth}"


def turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class Stream(nn.Module):
    """Two blocks on a residual stream, each reading it through a norm; LayerScale where ``scaled``."""

    def __init__(self, inputs: int, width: int, kind: str, bodies: list[nn.Module], scaled: bool) -> None:
        super().__init__()
        self.embed, self.kind = nn.Linear(inputs, width), kind
        self.norms = nn.ModuleList(NORMS[kind](width) for _ in range(len(bodies) + 1))
        self.bodies = nn.ModuleList(bodies)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(width)) for _ in bodies] if scaled else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for k, body in enumerate(self.bodies):
            y = body(self.norms[k](x))
            x = x + (y * self.scales[k] if len(self.scales) else y)
        return self.norms[-1](x)

    def extra_repr(self) -> str:
        return self.kind


class Mlp(nn.Module):
    def __init__(self, inputs: int, hidden: int, function: Function) -> None:
        super().__init__()
        self.up, self.down, self.function = nn.Linear(inputs, hidden), nn.Linear(hidden, inputs), function

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self.up(x)))


class Tokens(nn.Module):
    """A class token in front and an embedding of positions; the result is all tokens, or the class token alone."""

    def __init__(self, length: int, size: int, alone: bool) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, size))
        self.positions, self.alone = nn.Parameter(torch.randn(1, length + 1, size)), alone

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return x[:, 0] if self.alone else x


class Twice(nn.Module):
    """One layer applied two times."""

    def __init__(self, layer: nn.Module, function: Function) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.function(self.layer(x)))


class Recurrent(nn.Module):
    """An LSTM or GRU over the tokens; the states are dropped, or the last one is the result."""

    def __init__(self, kind: str, inputs: int, hidden: int, layers: int, both: bool, last: bool) -> None:
        super().__init__()
        make = nn.LSTM if kind == "lstm" else nn.GRU
        self.cell, self.last = make(inputs, hidden, layers, batch_first=True, bidirectional=both), last

    def forward(self, x: Tensor) -> Tensor:
        outputs, state = self.cell(x)
        if not self.last:
            return outputs
        return (state[0] if isinstance(state, tuple) else state)[-1]

    def extra_repr(self) -> str:
        return "last state" if self.last else "outputs"
