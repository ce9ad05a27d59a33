"""More layers: constants that reach weights, einsum, picks by index, one and three dimensions, streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from properties.blocks import Apply
from properties.dice import Dice
from properties.streams import NORMS, Mlp, Recurrent, Rotary, Stream, Tokens, Twice

Shape = tuple[int, ...]
Function = Callable[[Tensor], Tensor]

MOVES: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "exp": lambda x: (x / 8).exp(),
    "x + 0.5": lambda x: x + 0.5,
    "relu(x) + 2": lambda x: F.relu(x) + 2,
    "relu": F.relu,
    "gelu": F.gelu,
}


def moves(dice: Dice) -> tuple[str, Function]:
    name = dice.pick(list(MOVES))
    return name, MOVES[name]


class Einsum(nn.Module):
    """``x`` with a weight of the model's own by one formula."""

    def __init__(self, formula: str, shape: Shape) -> None:
        super().__init__()
        self.formula, self.weight = formula, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.formula, x, self.weight)

    def extra_repr(self) -> str:
        return f"{self.formula}, {tuple(self.weight.shape)}"


class Picked(nn.Module):
    """Channels (axis 1) or features (the last axis) by a constant index, written in one of three ways."""

    index: Tensor

    def __init__(self, index: list[int], axis: int, how: str) -> None:
        super().__init__()
        self.axis, self.how = axis, how
        self.register_buffer("index", torch.tensor(index))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "index_select":
            return x.index_select(self.axis, self.index)
        if self.how == "gather":
            shape = [1] * x.ndim
            shape[self.axis] = -1
            sizes = [len(self.index) if k == self.axis % x.ndim else size for k, size in enumerate(x.shape)]
            return x.gather(self.axis, self.index.view(shape).expand(sizes))
        return x[:, self.index] if self.axis == 1 else x[..., self.index]

    def extra_repr(self) -> str:
        return f"{self.how} {self.index.tolist()} along {self.axis}"


def picked(dice: Dice, shape: Shape) -> nn.Module:
    axis = 1 if len(shape) == 4 or dice.flag() else -1
    size = shape[axis]
    index = [dice.number(0, size - 1) for _ in range(dice.number(1, min(size, 6)))]
    return Picked(index, axis, dice.pick(("index_select", "gather", "index")))


# ---- maps ------------------------------------------------------------------------------------------------------------


def constant_conv(dice: Dice, shape: Shape) -> nn.Module:
    """A convolution that constants reach, with and without padding."""
    width, outputs, kernel = dice.width(), dice.width(), dice.pick((1, 3))
    kernel = kernel if shape[2] >= 3 else 1
    padding = dice.pick((0, kernel // 2))
    name, function = moves(dice)
    mode: Literal["zeros", "reflect"] = "reflect" if padding and dice.number(0, 2) == 2 else "zeros"
    last = nn.Conv2d(width, outputs, kernel, padding=padding, bias=not dice.flag(), padding_mode=mode)
    return nn.Sequential(nn.Conv2d(shape[1], width, 1), Apply(name, function), last)


def other_dimensions(dice: Dice, shape: Shape) -> nn.Module:
    """A map as a line through a 1d convolution, or as a volume through a 3d one."""
    outputs = dice.width()
    groups = dice.divisor(shape[1], outputs)
    bias = not dice.flag()
    if dice.flag():
        conv: nn.Module = nn.Conv3d(shape[1], outputs, (1, 3, 3), padding=(0, 1, 1), groups=groups, bias=bias)
        return nn.Sequential(
            Apply("unsqueeze", lambda x: x.unsqueeze(2)), conv, Apply("squeeze", lambda x: x.squeeze(2))
        )
    sides = shape[2:]
    conv = nn.Conv1d(shape[1], outputs, 3, padding=1, groups=groups, bias=bias)
    return nn.Sequential(Apply("line", lambda x: x.flatten(2)), conv, Apply("map", lambda x: x.unflatten(2, sides)))


def pixels(dice: Dice, shape: Shape) -> nn.Module:
    """Pixel shuffles and their inverse, alone and after each other."""
    options: dict[str, Function] = {}
    if shape[2] % 2 == 0 and shape[3] % 2 == 0 and shape[1] <= 8:
        options["unshuffle"] = lambda x: F.pixel_unshuffle(x, 2)
        options["unshuffle, relu, shuffle"] = lambda x: F.pixel_shuffle(F.relu(F.pixel_unshuffle(x, 2)), 2)
        options["unshuffle, flip"] = lambda x: F.pixel_unshuffle(x, 2).flip(1)
    if shape[1] % 4 == 0 and shape[2] <= 4:
        options["shuffle"] = lambda x: F.pixel_shuffle(x, 2)
        options["shuffle, pool"] = lambda x: F.avg_pool2d(F.pixel_shuffle(x, 2), 2)
    name = dice.pick([*options, "same"])
    return Apply(name, options.get(name, lambda x: x * 1))


def map_einsum(dice: Dice, shape: Shape) -> nn.Module:
    outputs = dice.width()
    formulas: dict[str, Shape] = {
        "nchw,oc->nohw": (outputs, shape[1]),
        "nchw,co->nhwo": (shape[1], outputs),
        "nchw,c->nchw": (shape[1],),
        "nchw,c->nhw": (shape[1],),
        "nchw,hwo->nco": (shape[2], shape[3], outputs),
    }
    formula = dice.pick(list(formulas))
    made = Einsum(formula, formulas[formula])
    if formula == "nchw,co->nhwo":
        return nn.Sequential(made, Apply("back", lambda x: x.permute(0, 3, 1, 2)))
    return made


def nested_cat(dice: Dice, shape: Shape) -> nn.Module:
    options: dict[str, Function] = {
        "cat of cat": lambda x: torch.cat([torch.cat([x, F.relu(x)], 1), x.tanh()], 1),
        "cat of parts": lambda x: torch.cat([x[:, 1:], torch.cat([x[:, :1], x], 1)], 1),
        "cat with zeros": lambda x: torch.cat([x, torch.zeros_like(x[:, :2])], 1),
        "cat with ones": lambda x: torch.cat([torch.ones_like(x[:, :1]), x], 1),
    }
    name = dice.pick(list(options))
    return Apply(name, options[name])


# ---- tokens and vectors ------------------------------------------------------------------------------------------


def constant_linear(dice: Dice, shape: Shape) -> nn.Module:
    """A linear layer that constants reach."""
    width = dice.width()
    name, function = moves(dice)
    last = nn.Linear(width, dice.width(), bias=not dice.flag())
    return nn.Sequential(nn.Linear(shape[-1], width), Apply(name, function), last)


def stream(dice: Dice, shape: Shape) -> nn.Module:
    """A residual stream with two blocks under norms."""
    width = dice.pick((4, 6, 8))
    bodies = [Mlp(width, dice.width(), moves(dice)[1])]
    if len(shape) == 3 and dice.flag():
        bodies.append(rotary(dice, (*shape[:2], width)))  # type: ignore[arg-type]
    else:
        bodies.append(Mlp(width, dice.width(), F.silu))
    return Stream(shape[-1], width, dice.pick(list(NORMS)), list(bodies), dice.flag())


def rotary(dice: Dice, shape: Shape) -> nn.Module:
    heads = dice.pick((1, 2, 4))
    return Rotary(shape[-1], heads, dice.divisor(heads), dice.pick((2, 4)))


def tokens(dice: Dice, shape: Shape) -> nn.Module:
    return Tokens(shape[1], shape[2], dice.flag())


def twice(dice: Dice, shape: Shape) -> nn.Module:
    return Twice(nn.Linear(shape[-1], shape[-1]), moves(dice)[1])


def recurrent(dice: Dice, shape: Shape) -> nn.Module:
    kind, layers = dice.pick(("lstm", "gru")), dice.number(1, 2)
    return Recurrent(kind, shape[-1], dice.pick((2, 4)), layers, dice.flag(), dice.flag())


def token_order(dice: Dice, shape: Shape) -> nn.Module:
    axis, shift = dice.pick((1, 2)), dice.number(1, 3)
    options: dict[str, Function] = {
        f"flip {axis}": lambda x: x.flip(axis),
        f"roll by {shift} along {axis}": lambda x: x.roll(shift, axis),
        "two halves swapped": lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
        "one half gates the other": lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[-1].sigmoid(),
    }
    name = dice.pick(list(options)[: 2 if shape[-1] % 2 else 4])
    return Apply(name, options[name])


def token_einsum(dice: Dice, shape: Shape) -> nn.Module:
    outputs, heads = dice.width(), dice.pick((1, 2, 3))
    formulas: dict[str, Shape] = {
        "ntc,oc->nto": (outputs, shape[2]),
        "ntc,chd->nthd": (shape[2], heads, outputs),
        "ntc,to->nco": (shape[1], outputs),
        "ntc,c->nt": (shape[2],),
        "ntc,tc->nc": (shape[1], shape[2]),
    }
    formula = dice.pick(list(formulas))
    made = Einsum(formula, formulas[formula])
    if formula == "ntc,chd->nthd":
        if dice.flag():
            return nn.Sequential(made, Apply("scores", lambda x: torch.einsum("nthd,nshd->nhts", x, x).flatten(1, 2)))
        return nn.Sequential(made, Apply("heads joined", lambda x: x.flatten(2)))
    return made


def vector_einsum(dice: Dice, shape: Shape) -> nn.Module:
    outputs = dice.width()
    formulas: dict[str, Shape] = {"nc,oc->no": (outputs, shape[1]), "nc,co->no": (shape[1], outputs), "nc,d->ncd": (2,)}
    formula = dice.pick(list(formulas))
    return Einsum(formula, formulas[formula])
