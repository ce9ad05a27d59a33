"""What tests of the back ends get: subnets of any model, cut to about half."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from coppice import Subnet, build_space, extract, trace


@pytest.fixture
def cut() -> Callable[..., Subnet]:
    """``cut(model, *args, **kwargs)``: the subnet that keeps half of every family, validated."""

    def make(model: nn.Module, *args: Any, ratio: float = 0.5, **kwargs: Any) -> Subnet:
        space = build_space(trace(model.eval(), kwargs or args))
        assert space.families, "nothing to cut"
        return extract(space, space.uniform(ratio))

    return make
