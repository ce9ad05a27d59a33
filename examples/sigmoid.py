"""A network that nothing can leave, to see how that is explained: sigmoid(0) is a half, not zero.

coppice explain examples/sigmoid.py:build
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
        return self.out(torch.sigmoid(self.hidden(x)))


def build() -> tuple[nn.Module, Any]:
    """The model and example inputs."""
    torch.manual_seed(0)
    return Gated(), torch.randn(2, 16)
