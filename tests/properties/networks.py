"""Random DAGs of layers: the network, and the strategy that draws it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor, nn

from properties.blocks import Apply
from properties.dice import Dice
from properties.layers import LAYERS, Shape, fits, fresh_conv
from zoo.case import randomise

INPUTS: tuple[Shape, ...] = ((3, 4, 4), (5, 6), (7,))
JOINS: dict[str, Callable[..., Tensor]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "gate": lambda a, b: a * torch.sigmoid(b),
    "subtract": lambda a, b: a - b,
    "maximum": torch.maximum,
    "cat": lambda a, b: torch.cat([a, b], 1),
    "nested cat": lambda a, b: torch.cat([torch.cat([a, b], 1), a.tanh()], 1),
    "stack": lambda a, b: torch.stack([a, b], 2).flatten(1, 2),
    "stacked sum": lambda a, b: torch.stack([a, b], 1).sum(1),
}
MOST = 256


@dataclass(frozen=True)
class Step:
    """Layer ``layer`` of the network applied to the values ``inputs``; its results are the next values."""

    layer: int
    inputs: tuple[int, ...]


class Network(nn.Module):
    """``layers`` run in the order of ``steps``; every value that nothing reads goes through a head of its own."""

    def __init__(self, layers: list[nn.Module], steps: list[Step], heads: dict[int, nn.Module], summed: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.steps = steps
        self.heads = nn.ModuleDict({str(value): head for value, head in heads.items()})
        self.summed = summed

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = [x]
        for step in self.steps:
            result = self.layers[step.layer](*(values[i] for i in step.inputs))
            values += result if isinstance(result, tuple) else (result,)
        out = tuple(head(values[int(value)]) for value, head in self.heads.items())
        return torch.stack(out).sum(0) if self.summed else out

    def extra_repr(self) -> str:
        return "; ".join(f"{list(step.inputs)} -> layer {step.layer}" for step in self.steps)


@dataclass(frozen=True, eq=False)
class Example:
    """A network with its inputs at batch 2; ``inputs(n)`` gives another batch size."""

    network: Network
    shape: Shape
    dtype: torch.dtype

    def inputs(self, batch: int = 2) -> Tensor:
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(batch)).to(self.dtype)

    def __repr__(self) -> str:
        return f"Example(shape={self.shape}, network={self.network!r})"


def some(quick: int) -> settings:
    """``quick`` examples, or as many times more as the profile's number of examples is times hypothesis's own 100."""
    asked: int = settings.default.max_examples  # type: ignore[union-attr]
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=max(quick, quick * asked // 100), suppress_health_check=slow)


@st.composite
def networks(draw: DrawFn, most: int = 10, dtype: torch.dtype = torch.float32) -> Example:
    """Networks of up to ``most`` steps with random weights, biases and norm statistics, in eval mode.

    In float64 a subnet is exact to rounding; in float32 what forward itself computes in float32, a table of angles say,
    is rounded to that, however wide its inputs.
    """
    dice = Dice(draw)
    shape = dice.pick(INPUTS)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        grown = _Grown(dice, torch.randn(2, *shape, generator=torch.Generator().manual_seed(2)))
        grown.stem()
        for _ in range(max(dice.number(1, most), dice.number(1, most))):
            grown.step()
        network = grown.finish()
        randomise(network)
    return Example(network.to(dtype), shape, dtype)


class _Grown:
    def __init__(self, dice: Dice, x: Tensor) -> None:
        self.dice = dice
        self.values = [x]
        self.layers: list[nn.Module] = []
        self.steps: list[Step] = []
        self.taken: dict[int, Shape] = {}

    def stem(self) -> None:
        """A first layer with weights: what hangs on the input alone cannot be cut."""
        shape = tuple(self.values[0].shape)
        width = self.dice.width()
        self.add(nn.Conv2d(shape[1], width, 3, padding=1) if len(shape) == 4 else nn.Linear(shape[-1], width), (0,))

    def step(self) -> None:
        kind = self.dice.pick(("layer", "layer", "layer", "join", "again"))
        at = max(0, len(self.values) - 1 - self.dice.pick((0, 0, 0, 1, 2)))
        if kind == "join":
            self.join(at)
        elif kind == "again" and self.again(at):
            return
        else:
            self.layer(at)

    def layer(self, at: int) -> None:
        shape = tuple(self.values[at].shape)
        layer = self.dice.pick([layer for layer in LAYERS[len(shape)] if fits(layer, shape)])
        self.add(layer(self.dice, shape), (at,))

    def again(self, at: int) -> bool:
        """Apply an earlier layer once more, with the same weights."""
        fitting = [k for k, shape in self.taken.items() if shape == self.values[at].shape]
        if not fitting:
            return False
        self.run(self.dice.pick(fitting), (at,))
        return True

    def join(self, at: int) -> None:
        """Join value ``at`` with another of its shape; a 1x1 convolution makes one where there is none."""
        own = self.values[at]
        others = [k for k, value in enumerate(self.values) if value.shape == own.shape]
        same_size = [k for k, v in enumerate(self.values) if own.ndim == 4 == v.ndim and v.shape[2:] == own.shape[2:]]
        if same_size and (len(others) < 2 or self.dice.flag()):
            other = self.dice.pick(same_size)
            self.add(fresh_conv(self.values[other].shape[1], own.shape[1]), (other,))
            others = [len(self.values) - 1]
        name = self.dice.pick(list(JOINS))
        self.add(Apply(name, JOINS[name]), (at, self.dice.pick(others)))

    def add(self, layer: nn.Module, inputs: tuple[int, ...]) -> None:
        self.layers.append(layer)
        self.run(len(self.layers) - 1, inputs)

    def run(self, layer: int, inputs: tuple[int, ...]) -> None:
        given = [self.values[i] for i in inputs]
        result = self.layers[layer].eval()(*given)
        made = list(result) if isinstance(result, tuple) else [result]
        if any(value.shape[1:].numel() > MOST * 4 for value in made):
            return
        if len(inputs) == 1 and not isinstance(self.layers[layer], Apply):
            self.taken[layer] = tuple(given[0].shape)
        self.values += made
        self.steps.append(Step(layer, inputs))

    def finish(self) -> Network:
        used = {i for step in self.steps for i in step.inputs}
        heads = {k: self.head(tuple(v.shape)) for k, v in enumerate(self.values) if k not in used}
        return Network(self.layers, self.steps, heads, summed=self.dice.flag()).eval()

    def head(self, shape: Shape) -> nn.Module:
        flat = math.prod(shape[1:])
        if len(shape) == 2 or (flat <= MOST and self.dice.flag()):
            return nn.Sequential(nn.Flatten(), nn.Linear(flat, 3))
        if len(shape) == 4:
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[1], 3))
        return nn.Sequential(Apply("mean over tokens", lambda x: x.mean(1)), nn.Linear(shape[2], 3))
