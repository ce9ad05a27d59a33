"""Random networks of nested segments: residual branches, parallel operators, inner U-Nets, mixed operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor, nn

from properties.dice import Dice
from zoo.case import randomise

SIDE = 8


class Plain(nn.Sequential):
    """A convolution that keeps width and size, in a few styles."""

    def __init__(self, dice: Dice, width: int) -> None:
        kernel = dice.pick((1, 3))
        groups = dice.pick((1, width))
        layers: list[nn.Module] = [nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=groups, bias=dice.flag())]
        if dice.flag():
            layers.append(nn.BatchNorm2d(width))
        if dice.flag():
            layers.append(dice.pick((nn.ReLU, nn.GELU, nn.Tanh))())
        super().__init__(*layers)


class Residual(nn.Module):
    """x + f(x), or act(f(x) + x), f nested."""

    def __init__(self, dice: Dice, width: int, depth: int) -> None:
        super().__init__()
        self.inner = block(dice, width, depth - 1)
        self.after = dice.flag()
        self.scale = nn.Parameter(torch.ones(width, 1, 1)) if dice.flag() else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y = y if self.scale is None else y * self.scale
        return F.relu(y + x) if self.after else x + y


class Parallel(nn.Module):
    """Two or three nested operators of the same input: summed, or concatenated and mixed."""

    def __init__(self, dice: Dice, width: int, depth: int) -> None:
        super().__init__()
        self.operators = nn.ModuleList(block(dice, width, depth - 1) for _ in range(dice.number(2, 3)))
        self.mix = nn.Conv2d(len(self.operators) * width, width, 1) if dice.flag() else None

    def forward(self, x: Tensor) -> Tensor:
        results = [operator(x) for operator in self.operators]
        if self.mix is not None:
            mixed: Tensor = self.mix(torch.cat(results, 1))
            return mixed
        total: Tensor = sum(results[1:], start=results[0])
        return total


class Mixed(nn.Module):
    """Operators, some without parameters, weighted by a softmax."""

    def __init__(self, dice: Dice, width: int, depth: int) -> None:
        super().__init__()
        bare: tuple[nn.Module, ...] = (nn.Identity(), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1))
        self.operators = nn.ModuleList([block(dice, width, depth - 1), dice.pick(bare), Plain(dice, width)])
        self.alpha = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.alpha, 0)
        total: Tensor = sum(weights[k] * operator(x) for k, operator in enumerate(self.operators))
        return total


class Hourglass(nn.Module):
    """Down, a nested network, up, and the two levels concatenated."""

    def __init__(self, dice: Dice, width: int, depth: int) -> None:
        super().__init__()
        inner = 2 * width if dice.flag() else width
        self.down = nn.Conv2d(width, inner, 1)
        self.inner = block(dice, inner, depth - 1)
        self.up = nn.Conv2d(inner, width, 1)
        self.mix = nn.Conv2d(2 * width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.up(self.inner(self.down(x))))
        mixed: Tensor = self.mix(torch.cat([x, y], 1))
        return mixed


class Chain(nn.Sequential):
    def __init__(self, dice: Dice, width: int, depth: int) -> None:
        super().__init__(*(block(dice, width, depth - 1) for _ in range(dice.number(1, 2))))


NESTED: tuple[Callable[[Dice, int, int], nn.Module], ...] = (Residual, Parallel, Chain, Hourglass, Mixed)


def block(dice: Dice, width: int, depth: int) -> nn.Module:
    """A network (N, width, H, W) -> (N, width, H, W) nested up to ``depth`` deep."""
    return Plain(dice, width) if depth <= 0 else dice.pick(NESTED)(dice, width, depth)


class Net(nn.Module):
    def __init__(self, dice: Dice) -> None:
        super().__init__()
        width = dice.pick((2, 4))
        self.stem = nn.Conv2d(3, width, 1)
        self.body = nn.Sequential(*(block(dice, width, dice.number(1, 3)) for _ in range(dice.number(1, 3))))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return logits


@st.composite
def hierarchies(draw: DrawFn) -> nn.Module:
    """Networks in fp64 and eval mode with random weights; their input is (N, 3, 8, 8)."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = Net(Dice(draw)).double()
        randomise(net)
    return net.eval()


def image(batch: int) -> Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)
