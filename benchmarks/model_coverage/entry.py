"""What the list of models holds: a name, a domain, a builder and example inputs by batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Args = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One model: ``source`` says whose code it is, ``domain`` what it is for.

    ``build`` gives it with randomised parameters, in eval mode; ``inputs(batch)`` are positional or named arguments.
    """

    name: str
    source: str
    domain: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Args]

    @property
    def key(self) -> str:
        return f"{self.source}/{self.name}"


class Take(nn.Module):
    """The tensors of a model's output alone: what a peer, a table or an exporter can compare."""

    def __init__(self, model: nn.Module, what: str) -> None:
        super().__init__()
        self.model, self.what = model, what

    def forward(self, x: Tensor) -> Any:
        return getattr(self.model(x), self.what)


def image(*size: int, channels: int = 3) -> Callable[[int], Args]:
    """One normal tensor ``(batch, channels, *size)``."""
    return lambda batch: (torch.randn(batch, channels, *size, generator=_generator()),)


def noise(*size: int) -> Callable[[int], Args]:
    """One normal tensor ``(batch, *size)``."""
    return lambda batch: (torch.randn(batch, *size, generator=_generator()),)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1234)
