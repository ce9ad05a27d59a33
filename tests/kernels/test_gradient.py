"""weight_gradient and input_gradient against fp64: every variant, types, layouts, windows, and networks that train."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coppice import kernels
from coppice.kernels import Pool, Weight, Window, weight_gradient
from kernelkit import EPSILON, SIZES, UNITS, WINDOWS, available

VARIANTS = available("weight_gradient")

Pair = tuple[int, int]
Tensor = torch.Tensor


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def pattern(rows: int, cols: int, density: float, height: int, slab: int | None, seed: int) -> Weight | None:
    """Height 0: dense; -1: none, a plain matrix."""
    random = np.random.default_rng(seed)
    matrix = np.where(random.random((rows, cols)) < density, 1, 0).astype(np.float32)
    if height < 0:
        return None
    return Weight.sparse(matrix, height=height, slab=slab) if height else Weight.dense(matrix, slab=slab)


def at_entries(weight: Weight | None, matrix: Tensor) -> Tensor:
    """What [rows, cols] holds at each value of the weight, 0 past its rows."""
    if weight is None:
        return matrix
    band, column = (torch.from_numpy(places) for places in weight.places())
    padded = torch.zeros(weight.bands * weight.height, weight.cols, dtype=matrix.dtype)
    padded[: weight.rows] = matrix
    return padded[band[:, None] * weight.height + torch.arange(weight.height), column[:, None]]


def columns_of(x: Tensor, window: Window | None) -> Tensor:
    """float64 [cols, pixels], as ``matmul`` has them."""
    if window is None:
        return x.double()
    unfold = torch.nn.functional.unfold
    return unfold(x.double()[None], window.kernel, window.dilation, window.padding, window.stride)[0]


def agrees(got: Tensor, weight: Weight | None, dy: Tensor, columns: Tensor, before: Tensor | None = None) -> None:
    """Of n products and what was there, n + 1 roundings err by EPSILON / 2 of all magnitudes at most; twice it."""
    dy = dy.double().flatten(1)
    exact, magnitude = at_entries(weight, dy @ columns.T), at_entries(weight, dy.abs() @ columns.abs().T)
    if before is not None:
        exact, magnitude = exact + before, magnitude + before.abs()
    assert got.shape == exact.shape
    assert got.dtype == torch.float32
    assert bool(((got - exact).abs() <= (columns.shape[1] + 1) * EPSILON * magnitude).all())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    cols=st.integers(0, 300),
    pixels=st.integers(0, 420),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    slab=st.sampled_from([None, 1, 7, 64, 65536]),
    height=st.sampled_from([-1, 0, 1, 4, 8, 16]),
    kind=st.sampled_from(sorted(UNITS)),
    gaps=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    with_bias=st.booleans(),
    accumulate=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_products(
    variant: str,
    rows: int,
    cols: int,
    pixels: int,
    density: float,
    slab: int | None,
    height: int,
    kind: str,
    gaps: Pair,
    with_bias: bool,
    accumulate: bool,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = pattern(rows, cols, density, height, slab, seed)
    dy, x = (
        torch.randn(n, pixels + gap, generator=random).to(getattr(torch, kind))[:, gap:]
        for n, gap in zip((rows, cols), gaps, strict=True)
    )
    before = at_entries(weight, torch.randn(rows, cols, generator=random))
    bias = torch.full((rows,), 2.0) if with_bias else None
    out = before.clone()
    got = weight_gradient(weight, dy, x, out=out, bias=bias, accumulate=accumulate, variant=variant)
    assert got is out
    agrees(got, weight, dy, x.double(), before.double() if accumulate else None)
    if bias is not None:
        start = torch.full((rows, 1), 2.0 if accumulate else 0.0)
        agrees(bias[:, None], None, dy, torch.ones(1, pixels).double(), start.double())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.integers(1, 5),
    size=SIZES,
    window=WINDOWS,
    rows=st.integers(1, 20),
    height=st.sampled_from([-1, 0, 1, 4]),
    kind=st.sampled_from(sorted(UNITS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_convolutions(
    variant: str,
    channels: int,
    size: tuple[int, int],
    window: Window,
    rows: int,
    height: int,
    kind: str,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    cols = channels * window.kernel[0] * window.kernel[1]
    weight = pattern(rows, cols, 0.4, height, None, seed)
    x = torch.randn(channels, *size, generator=random).to(getattr(torch, kind))
    dy = torch.randn(rows, *window.out(*size), generator=random).to(getattr(torch, kind))
    got = weight_gradient(weight, dy, x, window=window, variant=variant)
    agrees(got, weight, dy, columns_of(x, window) if dy.numel() else torch.zeros(cols, 0).double())


def test_numpy_gets_numpy(variant: str) -> None:
    dy, x = np.ones((3, 40), np.float16), np.full((5, 40), 2, np.float16)
    got = weight_gradient(None, dy, x, variant=variant)
    assert got.dtype == np.float32
    assert np.array_equal(got, np.full((3, 5), 80))


@pytest.mark.skipif(not kernels.status().library, reason="needs the C library")
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("height", [-1, 0, 1, 4, 16])
def test_threads_share_the_work(variant: str, threads: int, height: int) -> None:
    pool = Pool(threads)
    dy, x = torch.randn(37, 300), torch.randn(90, 300)
    weight, bias = pattern(37, 90, 0.3, height, 40, 0), torch.zeros(37)
    agrees(weight_gradient(weight, dy, x, bias=bias, pool=pool, variant=variant), weight, dy, x.double())
    agrees(bias[:, None], None, dy, torch.ones(1, 300).double())
    pool.close()


def test_images_of_a_batch_add_up(variant: str) -> None:
    dy, x = torch.randn(6, 9, 20), torch.randn(6, 14, 20)
    weight = pattern(9, 14, 0.5, 4, None, 0)
    assert weight is not None
    total, bias = torch.zeros(weight.values.shape), torch.zeros(9)
    for number in range(6):
        weight_gradient(weight, dy[number], x[number], out=total, bias=bias, accumulate=True, variant=variant)
    whole = dy.transpose(0, 1).flatten(1), x.transpose(0, 1).flatten(1)
    agrees(total, weight, whole[0], whole[1].double())
    agrees(bias[:, None], None, whole[0], torch.ones(1, 120).double())


def test_nan_reaches_what_it_is_a_factor_of(variant: str) -> None:
    dy, x = torch.zeros(4, 50), torch.ones(6, 50)
    x[2, 49], dy[1, 20] = torch.inf, torch.nan
    got = weight_gradient(None, dy, x, variant=variant).isnan()
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[:, 2], expected[1] = True, True
    assert torch.equal(got, expected)
    weight = Weight.sparse(np.eye(3, 6, dtype=np.float32), height=4)
    assert weight_gradient(weight, dy[:3], x, variant=variant)[:, 3].tolist() == [0, 0, 0]


DY, X = np.ones((3, 8), np.float32), np.ones((5, 8), np.float32)
GOOD: dict[str, Any] = {"weight": Weight.sparse(np.ones((3, 5), np.float32)), "dy": DY, "x": X}


@pytest.mark.parametrize(
    ("place", "fact", "arguments"),
    [
        ("weight", "ndarray", {"weight": np.ones((3, 5))}),
        ("weight", "it is 3 x 5, dy and x ask for 3 x 4", {"x": X[:4]}),
        ("dy", "float64", {"dy": DY.astype(np.float64)}),
        ("dy", "2 dimensions", {"window": Window((1, 1)), "x": X[:, None]}),
        ("x", "ask for", {"x": X[:, :7]}),
        ("x", "float16", {"x": X.astype(np.float16)}),
        ("dy", "ask for", {"window": Window((1, 2)), "dy": DY[:, None], "x": X[:, None]}),
        ("out", "ask for", {"out": np.empty((15, 2), np.float32)}),
        ("out", "float16", {"out": np.empty((15, 1), np.float16)}),
        ("out", "rows must follow", {"out": np.empty((15, 2), np.float32)[:, :1]}),
        ("out", "overlaps x", {"out": X.reshape(-1)[:15, None]}),
        ("bias", "ask for", {"bias": np.empty(5, np.float32)}),
        ("bias", "overlaps dy", {"bias": DY[0, :3]}),
        ("accumulate", "nothing to add to", {"accumulate": True}),
        ("variant", "no variant", {"variant": "sse9"}),
    ],
)
def test_refused(place: str, fact: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(kernels.KernelError) as caught:
        weight_gradient(**GOOD | arguments)
    assert caught.value.place == place
    assert fact in caught.value.fact
    assert caught.value.remedy in str(caught.value)


@pytest.mark.usefixtures("no_library")
def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COPPICE_ISA", raising=False)
    dy, x = torch.randn(5, 30), torch.randn(7, 30)
    agrees(weight_gradient(None, dy, x), None, dy, x.double())
