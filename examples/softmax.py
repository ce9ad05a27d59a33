"""A network that nothing can leave, to see how that is explained: a softmax compares every unit with the others.

coppice explain examples/softmax.py:build
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Gated(nn.Module):
    """(N, 16) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(16, 32)
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.softmax(self.hidden(x), -1))


def build() -> tuple[nn.Module, Any]:
    """The model and example inputs."""
    torch.manual_seed(0)
    return Gated(), torch.randn(2, 16)
