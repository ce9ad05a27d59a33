"""Traps in picking, sorting, and writing into a part of a tensor."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case
from zoo.trapkit import Op, Op2, between, trap, two

FAMILY = "write"


class Sampled(nn.Module):
    """A second convolution says where the first one's map is read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.offset = nn.Conv2d(3, 2, 3, padding=1)
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.tanh(self.offset(x)).permute(0, 2, 3, 1)
        return self.out(F.grid_sample(self.conv1(x), grid, align_corners=False))


class Folded(nn.Module):
    """Windows are put together again after a convolution made them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4 * width, 2, stride=2)
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.fold(self.conv1(x).flatten(2), 8, 2, stride=2))


class Experts(nn.Module):
    """A router sends every position to one of three experts; all experts lose the same hidden units."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.up = nn.Parameter(torch.empty(3, 8, width))
        self.down = nn.Parameter(torch.empty(3, width, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((1, 2))
        best, which = self.router(x).max(-1)
        hidden = F.relu(torch.bmm(x[:, None], self.up[which]))
        return torch.bmm(hidden, self.down[which]) * best[:, None, None].sigmoid()


class Rotary(nn.Module):
    """Neighbouring features are turned by an angle that depends on the position: features leave in pairs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k = nn.Conv2d(3, 2 * width, 1), nn.Conv2d(3, 2 * width, 1)
        self.width = width

    def turned(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).transpose(1, 2)
        angle = torch.arange(flat.shape[1], dtype=x.dtype)[:, None]
        even, odd = flat[..., ::2], flat[..., 1::2]
        turned = even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()
        return torch.stack(turned, -1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        return self.turned(self.q(x)) @ self.turned(self.k(x)).transpose(1, 2)


def write_slice(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2:5] = y[:, 2:5] * 3
    return y


def write_part(x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    z[:, : y.shape[1]] = y
    return z + x


def write_constant(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :3] = 0.25
    return y


def write_one(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1] = y[:, 0] * 2
    return y


def write_rows(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 1:3] = -x[:, :, 4:6]
    return y


def put_add(x: Tensor) -> Tensor:
    """0.5 is written twice onto 0.5: both are constants once a channel is gone, their sum is another."""
    half = x.sigmoid().permute(2, 3, 0, 1)
    where = torch.tensor([0, 0, 2])
    return half.index_put((where,), half[:3], accumulate=True).permute(2, 3, 0, 1)


def put_zero(x: Tensor) -> Tensor:
    y = x.permute(2, 3, 0, 1)
    where = torch.tensor([0, 5, 2])
    return y.index_put((where,), y[:3] * 2).permute(2, 3, 0, 1)


def masked_rows(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    keep = torch.ones(8, 8, dtype=torch.bool).tril()
    return torch.where(keep[None, :, :, None], y, 0.0).permute(0, 3, 1, 2)


def gather_places(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    order = flat.mean(1, keepdim=True).argsort(-1)
    return flat.gather(2, order.expand(-1, x.shape[1], -1)).view_as(x)


def own_order(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return flat.gather(2, flat.argsort(-1)).view_as(x)


def places_of_zeros(x: Tensor) -> Tensor:
    return x + x.max(2, keepdim=True).indices * 0.1 + x.abs().min(2, keepdim=True).indices


PICKS: dict[str, Op] = {
    "max_places": lambda x: x.flatten(2).max(-1).values[:, :, None, None].expand_as(x),
    "topk_places": lambda x: x.flatten(2).topk(16, -1).values.view(x.shape[0], x.shape[1], 4, 4),
    "sort_places": lambda x: x.flatten(2).sort(-1).values.view_as(x),
    "where_scalar": lambda x: torch.where(x > 0, x, 0.0),
    "where_scalar_self": lambda x: torch.where(x <= 0, 0.0, x),
    "gather_own_order": own_order,
    "broadcast_scale": lambda x: x * x.mean((2, 3), keepdim=True).broadcast_to(x.shape),
    "window_sums": lambda x: x.unfold(3, 2, 2).sum(-1),
    "write_slice": write_slice,
    "write_rows": write_rows,
    "put_zero": put_zero,
    "where_rows": masked_rows,
}
HELD: dict[str, Op] = {
    "max_channels": lambda x: x.max(1, keepdim=True).values * x,
    "topk_channels": lambda x: x.topk(8, 1).values,
    "sort_channels": lambda x: x.sort(1).values,
    "gather_channels": lambda x: x.gather(1, x.argsort(1)),
    "where_scalar_one": lambda x: torch.where(x > 0, x, 0.7),
    "where_open": lambda x: torch.where(x != 0, x, 1.0),
    "put_add": put_add,
    "window_of_channels": lambda x: x.unfold(1, 2, 1).sum(-1)[:, :4],
    "triangle_of_channels": lambda x: x.transpose(1, 2).tril().transpose(1, 2),
}
JOINED: dict[str, Op2] = {"write_whole": write_part}


def _read(name: str) -> Callable[[int], int]:
    return (lambda width: 4) if name == "window_of_channels" else (lambda width: width)


CASES: list[Case] = [
    *(between(name, FAMILY, "expect", op, resizable=name != "write_slice") for name, op in PICKS.items()),
    *(
        between(name, FAMILY, "expect_frozen", op, read=_read(name), resizable=name not in ("topk_channels",))
        for name, op in HELD.items()
    ),
    between("gather_shared_order", FAMILY, "may", gather_places, note="a mean over channels says where to read"),
    between("write_constant", FAMILY, "may", write_constant, resizable=False, note="those beyond the third may leave"),
    between("places_of_zeros", FAMILY, "may", places_of_zeros, note="the first place wins among equals"),
    between("write_one", FAMILY, "may", write_one, resizable=False),
    *(two(name, FAMILY, "expect", op) for name, op in JOINED.items()),
    trap("grid_sample", FAMILY, "expect", Sampled, ("conv1.*",), frozen=("out.*", "offset.*")),
    trap("fold", FAMILY, "expect", Folded, ("conv1.*",), resizable=False),
    trap("experts", FAMILY, "expect", Experts, ("up",), axes={"up": 2}, frozen=("down", "router.*")),
    trap("rotary_pairs", FAMILY, "expect", Rotary, ("q.*", "k.*"), frozen=(), resizable=False),
]
