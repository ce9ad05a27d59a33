"""Layers by the rank of what they take: each draws its sizes for a value of the given shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from properties.blocks import (
    Apply,
    Attention,
    Gated,
    GroupGain,
    Held,
    LastLinear,
    LastNorm,
    Shuffle,
    SqueezeExcite,
    Tied,
)
from properties.dice import Dice
from properties.mixes import (
    constant_conv,
    constant_linear,
    map_einsum,
    nested_cat,
    other_dimensions,
    picked,
    pixels,
    recurrent,
    rotary,
    stream,
    token_einsum,
    token_order,
    tokens,
    twice,
    vector_einsum,
)

Shape = tuple[int, ...]
Layer = Callable[[Dice, Shape], nn.Module]
Function = Callable[[Tensor], Tensor]

ZERO_STAYS: dict[str, Function] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "swish_by_hand": lambda x: x * torch.sigmoid(x),
    "centred_sigmoid": lambda x: 2 * torch.sigmoid(x) - 1,
    "-x / 3": lambda x: -x / 3,
    "1 - (x + 1)": lambda x: 1 - (x + 1),
}
ZERO_MOVES: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "cos": torch.cos,
    "clamp_min": lambda x: x.clamp(min=0.1),
    "x + 0.5": lambda x: x + 0.5,
    "1 - x": lambda x: 1 - x,
    "x.abs() + 1": lambda x: x.abs() + 1,
}
GATES: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(-1),
    "plus one": lambda x: 1 + x,
    "gelu": F.gelu,
}


def activation(dice: Dice, shape: Shape) -> nn.Module:
    options = ZERO_MOVES if dice.number(0, 3) == 3 else ZERO_STAYS
    name = dice.pick(list(options))
    return Apply(name, options[name])


def gate(dice: Dice) -> Function:
    return GATES[dice.pick(list(GATES))]


# ---- maps: (batch, channels, height, width) --------------------------------------------------------------------------


def conv(dice: Dice, shape: Shape) -> nn.Module:
    outputs, kernel = dice.width(), dice.pick((1, 3))
    groups = dice.divisor(shape[1], outputs)
    stride = 1 + int(shape[2] > 2 and dice.flag())
    return nn.Conv2d(shape[1], outputs, kernel, stride, kernel // 2, groups=groups, bias=not dice.flag())


def depthwise(dice: Dice, shape: Shape) -> nn.Module:
    channels, times = shape[1], dice.number(1, 2)
    return nn.Conv2d(channels, channels * times, 3, padding=1, groups=channels, bias=not dice.flag())


def transposed(dice: Dice, shape: Shape) -> nn.Module:
    outputs = dice.width()
    groups = dice.divisor(shape[1], outputs)
    size = 2 if shape[2] <= 4 else 1
    return nn.ConvTranspose2d(shape[1], outputs, size, size, groups=groups, bias=not dice.flag())


def map_norm(dice: Dice, shape: Shape) -> nn.Module:
    kind = dice.pick(("batch", "batch", "plain batch", "group", "instance", "layer"))
    if kind == "group":
        return nn.GroupNorm(dice.divisor(shape[1]), shape[1])
    if kind == "instance" and shape[2] > 1:
        return nn.InstanceNorm2d(shape[1], affine=True)
    if kind == "layer":
        return LastNorm(shape[1])
    return nn.BatchNorm2d(shape[1], affine=kind == "batch")


def shuffle(dice: Dice, shape: Shape) -> nn.Module:
    groups = dice.divisor(shape[1])
    if dice.flag():
        return Apply(f"channel_shuffle {groups}", lambda x: torch.channel_shuffle(x, groups))
    return Shuffle(groups)


def group_gain(dice: Dice, shape: Shape) -> nn.Module:
    return GroupGain(shape[1], dice.divisor(shape[1]), dice.flag())


def held(dice: Dice, shape: Shape) -> nn.Module:
    size = dice.pick(((shape[1], 1, 1), (1, 1, 1), (1, shape[1], 1, 1)))
    return Held(dice.pick(("mul", "add")), size, dice.flag())


def squeeze_excite(dice: Dice, shape: Shape) -> nn.Module:
    return SqueezeExcite(shape[1], dice.width(), gate(dice))


def last_linear(dice: Dice, shape: Shape) -> nn.Module:
    return LastLinear(shape[1], dice.width())


def order(dice: Dice, shape: Shape) -> nn.Module:
    shift = dice.number(1, shape[1])
    options: dict[str, Function] = {
        "flip channels": lambda x: x.flip(1),
        f"roll channels by {shift}": lambda x: x.roll(shift, 1),
        f"roll channels by -{shift}": lambda x: x.roll(-shift, 1),
        "flip image": lambda x: x.flip(2, 3),
        "transpose image": lambda x: x.transpose(2, 3),
    }
    name = dice.pick(list(options))
    return Apply(name, options[name])


def part(dice: Dice, shape: Shape) -> nn.Module:
    start = dice.number(0, shape[1] - 1)
    end = dice.number(start + 1, shape[1])
    if dice.flag():
        return Apply(f"narrow {start}:{end}", lambda x: x.narrow(1, start, end - start))
    return Apply(f"[:, {start}:{end}]", lambda x: x[:, start:end])


def parts(dice: Dice, shape: Shape) -> nn.Module:
    first = dice.number(1, shape[1] - 1)
    if shape[1] % 2 == 0 and dice.flag():
        return Apply("chunk(2, 1)", lambda x: tuple(x.chunk(2, 1)))
    return Apply(f"split {first}", lambda x: tuple(x.split([first, x.shape[1] - first], 1)))


def pad(dice: Dice, shape: Shape) -> nn.Module:
    before, after, value = dice.number(0, 2), dice.number(0, 2), dice.pick((0.0, 1.0))
    if dice.flag():
        if shape[2] > 1 and dice.flag():
            return Apply("pad image, reflect", lambda x: F.pad(x, (1, 0, 0, 1), "reflect"))
        return Apply(f"pad image, {value}", lambda x: F.pad(x, (1, 0, 0, 1), value=value))
    return Apply(f"pad channels {before} {after} {value}", lambda x: F.pad(x, (0, 0, 0, 0, before, after), value=value))


def copies(dice: Dice, shape: Shape) -> nn.Module:
    options: dict[str, Function] = {
        "repeat": lambda x: x.repeat(1, 2, 1, 1),
        "interleave": lambda x: x.repeat_interleave(2, 1),
        "expand front": lambda x: x.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2),
        "expand back": lambda x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(x.shape[0], -1, *x.shape[2:]),
        "widen the mean": lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1),
        "one channel widened": lambda x: x[:, :1].expand_as(x),
    }
    name = dice.pick(list(options))
    return Apply(name, options[name])


def across(dice: Dice, shape: Shape) -> nn.Module:
    """Ops that look across channels."""
    groups = dice.divisor(shape[1])
    options: dict[str, Function] = {
        "softmax": lambda x: x.softmax(1),
        "mean": lambda x: x.mean(1, keepdim=True),
        "sum": lambda x: x.sum(1, keepdim=True),
        "centre": lambda x: x - x.mean(1, keepdim=True),
        "normalise": lambda x: F.normalize(x, dim=1),
        f"maxout {groups}": lambda x: torch.unflatten(x, 1, (-1, groups)).amax(2),
        f"sum groups of {groups}": lambda x: torch.unflatten(x, 1, (-1, groups)).sum(2),
        f"sum over {groups} groups": lambda x: torch.unflatten(x, 1, (groups, -1)).sum(1),
        f"softmax over {groups} groups": lambda x: torch.unflatten(x, 1, (groups, -1)).softmax(1).flatten(1, 2),
        "gram": lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2) @ x.flatten(2)).view_as(x) / 16,
    }
    name = dice.pick(list(options))
    return Apply(name, options[name])


def resample(dice: Dice, shape: Shape) -> nn.Module:
    options: dict[str, Function] = {}
    if shape[2] > 1:
        options["avg_pool"] = lambda x: F.avg_pool2d(x, 2)
        options["max_pool"] = lambda x: F.max_pool2d(x, 3, 1, 1)
        options["adaptive_pool"] = lambda x: F.adaptive_avg_pool2d(x, 2)
    if shape[2] <= 4:
        options["nearest"] = lambda x: F.interpolate(x, scale_factor=2.0)
        options["bilinear"] = lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")
        if shape[1] % 4 == 0:
            options["pixel_shuffle"] = lambda x: F.pixel_shuffle(x, 2)
    if shape[2] % 2 == 0 and shape[3] % 2 == 0 and shape[1] <= 4:
        options["pixel_unshuffle"] = lambda x: F.pixel_unshuffle(x, 2)
        options["focus"] = lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1)
    name = dice.pick(list(options))
    return Apply(name, options[name])


def round_trip(dice: Dice, shape: Shape) -> nn.Module:
    """Reshapes that give the same map back."""
    groups = dice.divisor(shape[1])
    options: dict[str, Function] = {
        "flatten and unflatten": lambda x: torch.unflatten(x.flatten(1), 1, x.shape[1:]),
        "to tokens and back": lambda x: x.flatten(2).permute(0, 2, 1).transpose(1, 2).reshape(x.shape),
        "through the batch": lambda x: x.reshape(-1, 1, *x.shape[2:]).tanh().view(x.shape),
        f"{groups} groups": lambda x: x.view(x.shape[0], groups, -1, *x.shape[2:]).relu().reshape(x.shape),
        f"{groups} groups through the batch": lambda x: (
            x.reshape(-1, x.shape[1] // groups, *x.shape[2:]).tanh().reshape(x.shape)
        ),
        "squeeze": lambda x: x.unsqueeze(2).squeeze(2),
    }
    name = dice.pick(list(options))
    return Apply(name, options[name])


def to_tokens(dice: Dice, shape: Shape) -> nn.Module:
    options: dict[str, Function] = {"tokens": lambda x: x.flatten(2).transpose(1, 2), "rows": lambda x: x.flatten(2)}
    if shape[1] * shape[2] * shape[3] <= 64:
        options["flatten"] = lambda x: x.flatten(1)
    options["mean over the image"] = lambda x: x.mean((2, 3))
    name = dice.pick(list(options))
    return Apply(name, options[name])


# ---- tokens: (batch, length, features), vectors: (batch, features) ---------------------------------------------------


def linear(dice: Dice, shape: Shape) -> nn.Module:
    return nn.Linear(shape[-1], dice.width(), bias=not dice.flag())


def token_norm(dice: Dice, shape: Shape) -> nn.Module:
    return nn.LayerNorm(shape[-1]) if dice.flag() else nn.BatchNorm1d(shape[1])


def attention(dice: Dice, shape: Shape) -> nn.Module:
    style, heads, depth = dice.pick(("plain", "sdpa", "fused")), dice.number(1, 4), dice.number(1, 3)
    shared = heads if style == "fused" else dice.divisor(heads)
    return Attention(shape[-1], heads, shared, depth, style)


def gated(dice: Dice, shape: Shape) -> nn.Module:
    return Gated(shape[-1], dice.width(), gate(dice))


def tied(dice: Dice, shape: Shape) -> nn.Module:
    return Tied(shape[-1], dice.width())


def token_shape(dice: Dice, shape: Shape) -> nn.Module:
    length, size = shape[1], shape[2]
    groups = dice.divisor(size)
    options: dict[str, Function] = {
        "transpose": lambda x: x.transpose(1, 2),
        "first token": lambda x: x[:, 0],
        "mean over tokens": lambda x: x.mean(1),
        f"{groups} groups": lambda x: x.view(*x.shape[:2], groups, -1).transpose(2, 3).flatten(2),
        f"norm of {groups} groups": lambda x: F.normalize(torch.unflatten(x, 2, (groups, -1)), dim=-1).flatten(2),
    }
    if length in (4, 16, 64):
        side = {4: 2, 16: 4, 64: 8}[length]
        options["to a map"] = lambda x: torch.unflatten(x.transpose(1, 2), 2, (side, side))
    if length * size <= 64:
        options["flatten"] = lambda x: x.flatten(1)
    name = dice.pick(list(options))
    return Apply(name, options[name])


def vector_shape(dice: Dice, shape: Shape) -> nn.Module:
    groups = dice.divisor(shape[1])
    options: dict[str, Function] = {
        "to a map": lambda x: x[:, :, None, None].expand(-1, -1, 2, 2),
        f"to {groups} tokens": lambda x: x.view(x.shape[0], groups, -1),
        "outer square": lambda x: x[:, :, None] * x[:, None, :],
        f"softmax in {groups} groups": lambda x: x.view(x.shape[0], groups, -1).softmax(-1).flatten(1),
    }
    name = dice.pick(list(options))
    return Apply(name, options[name])


def vector_norm(dice: Dice, shape: Shape) -> nn.Module:
    return nn.LayerNorm(shape[1]) if dice.flag() else nn.BatchNorm1d(shape[1])


LAYERS: dict[int, list[Layer]] = {
    4: [
        activation, activation, conv, conv, depthwise, transposed, map_norm, shuffle, group_gain, held,
        squeeze_excite, last_linear, constant_conv, other_dimensions, map_einsum,
        order, part, parts, pad, copies, across, resample, round_trip, pixels, picked, nested_cat, to_tokens,
    ],
    3: [
        activation, activation, linear, linear, attention, rotary, token_norm, token_shape, gated, tied, stream,
        constant_linear, tokens, twice, token_einsum, token_order, picked, recurrent,
    ],
    2: [
        activation, activation, linear, linear, vector_norm, vector_shape, gated, tied, stream, constant_linear, twice,
        vector_einsum, picked,
    ],
}  # fmt: skip


def fits(layer: Layer, shape: Shape) -> bool:
    """Whether ``layer`` may be drawn for a value of ``shape``."""
    if layer is parts:
        return 1 < shape[1] <= 16
    if layer in (copies, nested_cat):
        return 1 < shape[1] <= 8
    if layer in (stream, rotary, recurrent, twice):
        return shape[-1] <= 16 and shape[1] <= 32
    if layer is resample:
        return shape[2] > 1 or shape[2] <= 4
    if layer is vector_shape:
        return shape[1] <= 16
    return True


def fresh_conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1)


to_three = partial(nn.Linear, out_features=3)
