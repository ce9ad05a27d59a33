"""What the tests of several kernels share: who can run, and how far off a result may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from coppice import kernels

#: Half a unit in the last place of each type of activations, relative; fp32 is in the bounds of the sums already.
UNITS = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
EPSILON = float(np.finfo(np.float32).eps)


def available(primitive: str) -> list[str]:
    """Names of the variants of a primitive that can run here."""
    return [variant.name for variant in kernels.variants() if variant.primitive == primitive and variant.available]


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


#: Kernels, the usual ones more often, strides, pads, dilations, each as (vertical, horizontal).
WINDOWS = st.builds(
    kernels.Window, st.sampled_from([(3, 3), (5, 5)]) | pairs(1, 6), pairs(1, 4), pairs(0, 5), pairs(1, 3)
)
#: Height and width of an image.
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 50))


def close(y: torch.Tensor, exact: torch.Tensor, off: Any) -> None:
    """``y`` is within ``off`` of ``exact``, and what rounding to the type of y adds."""
    off = torch.as_tensor(off)
    unit = UNITS[str(y.dtype).removeprefix("torch.")]
    assert bool(((y.double() - exact).abs() <= off + unit * (exact.abs() + off) + 2.0**-25).all())
