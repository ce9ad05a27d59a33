"""A job: a fresh zoo model, its space, DHSPG or HESSO around a base, and a training loop that repeats exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from coppice import DHSPG, Config, Space, build_space, trace
from coppice.passes.train.engine import PruningOptimizer
from zoo import MODELS

Base = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Method = Callable[..., PruningOptimizer]


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3, amsgrad=True)


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.05)


@dataclass
class Job:
    model: nn.Module
    space: Space
    optimizer: PruningOptimizer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def inputs(self, step: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Random inputs like the example's; the same for the same step."""
        generator = torch.Generator().manual_seed(step)

        def draw(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if x.is_floating_point():
                return torch.randn(x.shape, generator=generator)
            return torch.randint(0, int(x.max()) + 1, x.shape, generator=generator)

        args, kwargs = tree_map(draw, (self.args, self.kwargs))
        return args, kwargs

    def loss(self, step: int) -> Tensor:
        torch.manual_seed(step)  # dropout
        args, kwargs = self.inputs(step)
        return sum((x.square().mean() for x in floating(self.model(*args, **kwargs))), start=torch.zeros(()))

    def step(self, step: int) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(self.loss(step))
        self.optimizer.step()

    def train(self, steps: Iterable[int]) -> Job:
        for step in steps:
            self.step(step)
        return self


def floating(result: Any) -> list[Tensor]:
    return [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]


def job(name: str, base: Base = sgd, budget: Any = "50%", *, steps: int = 12, **options: Any) -> Job:
    """A job of ``steps`` steps: by default 3 to warm up, 6 of penalty, 3 of refinement."""
    case = MODELS[name]
    model = case.build()
    args, kwargs = case.args(4)
    return job_of(model, args, kwargs, base, budget, steps=steps, **options)


def job_of(
    model: nn.Module, args: Any, kwargs: Any = None, base: Base = sgd, budget: Any = "50%", *, steps: int = 12,
    method: Method = DHSPG, **options: Any,
) -> Job:  # fmt: skip
    space = build_space(trace(model, kwargs or args))
    budget = budget if isinstance(budget, dict) else {"macs": budget}
    options = {"start": 0.25, "stop": 0.75, "steps": steps, **options}
    optimizer = method(space, base(model.parameters()), budget, **options)
    return Job(model.train(), space, optimizer, args, kwargs or {})


def redundant_slices(space: Space, config: Config) -> Iterator[tuple[str, int, Tensor]]:
    """(tensor, axis, positions) of everything that the removal of ``config``'s missing units zeroes."""
    for name, axes in space.zero_masks(config).items():
        for axis, mask in enumerate(axes):
            if mask is not None:
                yield name, axis, torch.from_numpy(np.flatnonzero(mask))


def nonzero_slices(space: Space, config: Config) -> list[str]:
    """Where a redundant unit still holds a number other than zero."""
    tensors = space.graph.tensors
    return [
        f"{name}, axis {axis}"
        for name, axis, where in redundant_slices(space, config)
        if bool(tensors[name].detach().index_select(axis, where).ne(0).any())
    ]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two snapshots are equal bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
