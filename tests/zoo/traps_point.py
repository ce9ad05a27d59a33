"""Pointwise traps: does a zeroed channel still reach the consumer as zero?"""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case
from zoo.trapkit import Op, Op2, between, two


class AddBuffer(nn.Module):
    offset: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(0.5, 1.5, width).view(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


class MulBuffer(nn.Module):
    mask: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.linspace(0.5, 1.5, width).view(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


class ScaleShift(nn.Module):
    """A free per-channel scale and bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.bias


class ScalarScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class NormThenConv(nn.Module):
    """Pre-activation: batch norm between two convolutions, then a third."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.bn(x)))


def inplace_chain(x: Tensor) -> Tensor:
    x.mul_(2.0)
    y = x.relu_()
    y += x
    return x.clamp_(max=3.0)


def spatial_softmax(x: Tensor) -> Tensor:
    return x.flatten(2).softmax(-1).view_as(x)


def spatial_fft(x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[-2:])


NONZERO: dict[str, Op] = {  # a known constant other than zero reaches the consumer
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "logsigmoid": F.logsigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "cos": torch.cos,
    "add_constant": lambda x: x + 0.5,
    "one_minus": lambda x: 1 - x,
    "elu_plus_one": lambda x: F.elu(x) + 1,
    "clamp_min": lambda x: x.clamp(min=0.1),
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "where_constant": lambda x: torch.where(x > 0, x, 0.3),
    "ge_mask": lambda x: x.ge(0).to(x.dtype),
    "softmax_spatial": spatial_softmax,
}
ZERO: dict[str, Op] = {  # zero stays zero
    "relu_avgpool": lambda x: F.avg_pool2d(F.relu(x), 3, stride=2, padding=1),
    "maxpool_padded": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "log1p": lambda x: torch.log1p(F.relu(x)),
    "where_leaky": lambda x: torch.where(x > 0, x, 0.1 * x),
    "square": lambda x: x**2,
    "sqrt": lambda x: F.relu(x).sqrt(),
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "softsign": F.softsign,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "clamp_symmetric": lambda x: x.clamp(-1, 1),
    "softshrink": F.softshrink,
    "gt_mask": lambda x: x.gt(0).to(x.dtype),
    "scale_constant": lambda x: -x / 3.0,
    "swish_by_hand": lambda x: x * torch.sigmoid(x),
    "gelu_by_hand": lambda x: 0.5 * x * (1.0 + torch.erf(x / 2.0**0.5)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False),
    "pad_reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "dropout": lambda x: F.dropout(F.dropout2d(x, 0.5, training=False), 0.5, training=False),
    "cast": lambda x: x.to(torch.float64).to(x.dtype),
    "inplace_chain": inplace_chain,
}
CANCELS: dict[str, Op] = {  # a constant appears and is taken away again
    "exp_minus_one": lambda x: torch.exp(x) - 1,
    "sigmoid_centred": lambda x: 2 * torch.sigmoid(x) - 1,
    "fft_spatial": spatial_fft,
}
INFINITE: dict[str, Op] = {  # zero becomes infinite
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: x.abs().rsqrt(),
    "log_abs": lambda x: x.abs().log(),
}
PAIRS: dict[str, Op2] = {
    "residual_add": lambda a, b: F.relu(a + b),
    "gate": lambda a, b: a * torch.sigmoid(b),
    "maximum": torch.maximum,
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "where_larger": lambda a, b: torch.where(a > b, a, b),
    "divide_safe": lambda a, b: a / (b.abs() + 1),
}

CASES: list[Case] = [
    *(between(name, "point", "later", op) for name, op in NONZERO.items()),
    *(between(name, "point", "expect", op) for name, op in ZERO.items()),
    *(between(name, "point", "may", op) for name, op in CANCELS.items()),
    *(between(name, "point", "expect_frozen", op) for name, op in INFINITE.items()),
    *(two(name, "point", "expect", op) for name, op in PAIRS.items()),
    two("divide", "point", "expect_frozen", lambda a, b: a / b, note="0 / 0"),
    between("add_buffer", "point", "later", make=AddBuffer, note="buffers are not zeroed with the unit"),
    between("mul_buffer", "point", "expect", make=MulBuffer),
    between("scale_bias", "point", "expect", make=ScaleShift, also=("op.scale", "op.bias")),
    between("scalar_scale", "point", "expect", make=lambda _: ScalarScale(), frozen=("op.scale",)),
    between("prelu_shared", "point", "expect", make=lambda _: nn.PReLU(), frozen=("op.weight",)),
    between("prelu_per_channel", "point", "expect", make=nn.PReLU, also=("op.weight",)),
    between("bn_affine", "point", "expect", make=nn.BatchNorm2d, also=("op.*",)),
    between(
        "bn_no_affine",
        "point",
        "expect",
        make=lambda w: nn.BatchNorm2d(w, affine=False),
        note="the running mean must be zeroed too: there is no scale to do it",
    ),
    between("bn_before_conv", "point", "expect", make=NormThenConv, also=("op.*",)),
]
