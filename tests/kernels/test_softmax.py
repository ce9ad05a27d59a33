"""softmax against fp64: every variant, scales, masks, rows that are no numbers, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coppice import kernels
from coppice.kernels import Pool, softmax
from kernelkit import EPSILON, UNITS, available, close

VARIANTS = available("softmax")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def agrees(y: torch.Tensor, x: torch.Tensor, scale: float) -> None:
    """The exponent errs by u of the magnitudes that it is the difference of, the exponential by 3 u, the sum by n u."""
    if y.numel() == 0:
        return
    t = x.double() * float(np.float32(scale))
    exact, most = t.softmax(1), t.amax(1, keepdim=True)
    off = (t.abs() + 2 * most.abs() + 2 * x.shape[1] + 8) * EPSILON * exact
    close(y, exact, torch.where(exact == 0, 0.0, off))
    assert bool((y.float().sum(1) - 1 <= 0.01 + x.shape[1] * UNITS[str(y.dtype).removeprefix("torch.")]).all())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 20),
    columns=st.integers(0, 300),
    kind=st.sampled_from(sorted(UNITS)),
    scale=st.sampled_from([1.0, 0.125, -2.0, 0.0]),
    spread=st.sampled_from([1.0, 30.0]),
    masked=st.booleans(),
    in_place=st.booleans(),
    gap=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_random(
    variant: str,
    rows: int,
    columns: int,
    kind: str,
    scale: float,
    spread: float,
    masked: bool,
    in_place: bool,
    gap: int,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, columns + gap, generator=random) * spread).to(getattr(torch, kind))[:, gap:]
    if masked and scale > 0 and columns:
        x[:, 1:][torch.rand(rows, columns - 1, generator=random) < 0.4] = -torch.inf
    before = x.clone()
    y = softmax(x, scale=scale, out=x if in_place else None, variant=variant)
    assert (y is x) == in_place
    if masked and scale > 0:
        assert bool((y[before == -torch.inf] == 0).all())
        before = before.nan_to_num(neginf=-6e4)
    agrees(y, before, scale)


def test_rows_that_are_no_numbers(variant: str) -> None:
    x = torch.randn(6, 40)
    x[0], x[1, 3], x[2, 39], x[3, 5] = -torch.inf, torch.nan, torch.inf, -torch.inf
    y = softmax(x, variant=variant)
    assert y.isnan().any(1).tolist() == [True, True, True, False, False, False]
    assert y.isnan().all(1).tolist() == [True, True, True, False, False, False]
    assert y[3, 5] == 0


@pytest.mark.skipif(not kernels.status().library, reason="needs the C library")
def test_threads_share_the_work(variant: str) -> None:
    torch.manual_seed(0)
    pool = Pool(3)
    for shape in ((1, 50), (2, 50), (40, 197)):
        x = torch.randn(*shape)
        agrees(softmax(x, pool=pool, variant=variant), x, 1.0)
    pool.close()


X = np.ones((4, 6), np.float32)


@pytest.mark.parametrize(
    ("place", "fact", "arguments"),
    [
        ("x", "1 dimensions", {"x": X[0]}),
        ("x", "int64", {"x": X.astype(np.int64)}),
        ("x", "strides", {"x": X.T}),
        ("out", "ask for", {"out": np.empty((4, 5), np.float32)}),
        ("out", "ask for", {"out": np.empty((4, 6), np.float16)}),
        ("variant", "no variant", {"variant": "sse9"}),
    ],
)
def test_refused(place: str, fact: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(kernels.KernelError) as caught:
        softmax(**({"x": X} | arguments))
    assert caught.value.place == place
    assert fact in caught.value.fact
    assert caught.value.remedy in str(caught.value)
