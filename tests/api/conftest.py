"""What tests of the calls get: small models with awkward parts, their spaces, and op rows that lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coppice.core.ops import OPS, Op, lookup
from zoo.case import randomise


class Awkward(nn.Module):
    """Tied weights, buffers that are and are not saved, whole numbers, nested inputs and results."""

    scale: Tensor
    steps: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 12)
        self.norm = nn.BatchNorm1d(12)
        self.middle = nn.Linear(12, 12)
        self.again = nn.Linear(12, 12, bias=False)
        self.again.weight = self.middle.weight
        self.out = nn.Linear(12, 4)
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer("scale", torch.rand(12) + 0.5, persistent=False)
        self.register_buffer("steps", torch.tensor([1, 2, 3]))
        self.register_buffer("table", torch.randn(3, 4), persistent=False)

    def forward(self, x: Tensor, *, extra: dict[str, Tensor]) -> dict[str, Any]:
        h = torch.relu(self.norm(self.encode(x + extra["shift"]))) * self.scale
        h = torch.relu(self.middle(h)) + torch.relu(self.again(h))
        y = self.out(h) + self.frozen + self.table[self.steps - 1].sum(0)
        return {"main": y, "pair": (y * 2, [y.argmax(1), None])}


@pytest.fixture
def awkward() -> nn.Module:
    model = Awkward()
    randomise(model)
    model.norm.eval()
    return model.eval()


@pytest.fixture
def inputs() -> Callable[[int], dict[str, Any]]:
    """``inputs(batch)`` for the awkward model."""
    return lambda batch: {"x": torch.randn(batch, 6), "extra": {"shift": torch.randn(batch, 6)}}


@pytest.fixture
def lie(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``lie("aten.sigmoid", labels=...)``: for one test the op table says something wrong."""

    def change(name: str, **parts: Any) -> None:
        lookup(torch.ops.aten.relu.default)  # loads the table
        known = OPS.get(name)
        row = replace(known, **parts) if known is not None else Op(name, **parts)
        monkeypatch.setitem(OPS, name, row)
        lookup.cache_clear()

    yield change
    monkeypatch.undo()
    lookup.cache_clear()
