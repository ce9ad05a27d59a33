"""Outputs that forward writes to in place, or returns twice, are outputs of the graph too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import coppice


class Written(nn.Module):
    """Returns a mask that it fills through a view, a scaled copy written in place, and one tensor twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y: Tensor = self.outer(torch.relu(self.inner(x)))
        mask = torch.ones(x.shape[0], 4, dtype=x.dtype)
        mask[:, :2] = 0
        z = y * 2
        z.add_(1)
        return y * mask, mask, z, z


def test_every_output_is_there_and_the_subnet_agrees() -> None:
    torch.manual_seed(0)
    model, x = Written().double().eval(), torch.randn(3, 6, dtype=torch.float64)
    space = coppice.build_space(coppice.trace(model, x))
    assert [f.size for f in space.families] == [8]
    subnet = coppice.extract(space, space.uniform(0.5))
    for expected, found in zip(subnet.reference()(x), subnet.module(x), strict=True):
        assert torch.allclose(expected, found, rtol=0, atol=1e-12)
