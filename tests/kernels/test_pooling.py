"""max_pool and average_pool against torch: every variant, padding counted or not, whole images, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coppice import kernels
from coppice.kernels import Pool, Window, average_pool, max_pool
from kernelkit import EPSILON, SIZES, UNITS, WINDOWS, available, close

VARIANTS = available("pooling")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.integers(1, 5),
    size=SIZES,
    window=WINDOWS,
    ceil_mode=st.booleans(),
    count=st.booleans(),
    kind=st.sampled_from(sorted(UNITS)),
    gap=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_they_are_those_of_torch(
    variant: str,
    channels: int,
    size: tuple[int, int],
    window: Window,
    ceil_mode: bool,
    count: bool,
    kind: str,
    gap: int,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    kernel, stride, dilation = window.kernel, window.stride, window.dilation
    padding = min(window.padding[0], kernel[0] // 2), min(window.padding[1], kernel[1] // 2)
    x = torch.randn(channels, size[0], size[1] + gap, generator=random).to(getattr(torch, kind))[:, :, gap:]
    functional, exact = torch.nn.functional, x.double()
    window = Window(kernel, stride, padding, dilation)
    if 0 not in window.out(*size):  # torch pools nothing that is smaller than the window
        expected = functional.max_pool2d(exact, kernel, stride, padding, dilation, ceil_mode)
        assert torch.equal(max_pool(x, window, ceil_mode=ceil_mode, variant=variant).double(), expected)
    window = Window(kernel, stride, padding)
    if 0 not in window.out(*size):
        expected = functional.avg_pool2d(exact, kernel, stride, padding, ceil_mode, count)
        y = average_pool(x, window, ceil_mode=ceil_mode, count_include_pad=count, variant=variant)
        assert y.shape == expected.shape
        magnitude = functional.avg_pool2d(exact.abs(), kernel, stride, padding, ceil_mode, count)
        close(y, expected, (kernel[0] * kernel[1] + 1) * EPSILON * magnitude)


@pytest.mark.parametrize("width", [1, 7, 16, 33])
@pytest.mark.parametrize("kind", sorted(UNITS))
def test_over_everything(variant: str, width: int, kind: str) -> None:
    torch.manual_seed(width)
    x = torch.randn(6, 5, width).to(getattr(torch, kind))
    y = average_pool(x, variant=variant)
    assert y.shape == (6, 1, 1)
    close(y[:, 0, 0], x.double().mean((1, 2)), (5 * width + 1) * EPSILON * x.double().abs().mean((1, 2)))
    assert torch.equal(max_pool(x, variant=variant)[:, 0, 0], x.amax((1, 2)))


def test_nan_and_infinity_are_seen(variant: str) -> None:
    x = torch.zeros(1, 9, 40)
    x[0, 4, 20], x[0, 4, 30] = torch.nan, torch.inf
    window = Window((3, 3))
    for y in (max_pool(x, window, variant=variant), average_pool(x, window, variant=variant)):
        assert y.isnan().nonzero()[:, 2].unique().tolist() == [18, 19, 20]
        assert y.isinf().nonzero()[:, 2].unique().tolist() == [28, 29, 30]
    assert max_pool(x, variant=variant).isnan().all()
    assert (
        max_pool(torch.full((1, 3, 3), -torch.inf), Window((2, 2), padding=(1, 1)), variant=variant).max() == -torch.inf
    )


@pytest.mark.skipif(not kernels.status().library, reason="needs the C library")
def test_threads_share_the_work(variant: str) -> None:
    torch.manual_seed(0)
    pool = Pool(3)
    for channels in (1, 2, 9):
        x = torch.randn(channels, 20, 33)
        expected = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        assert torch.equal(max_pool(x, Window((3, 3), (2, 2), (1, 1)), pool=pool, variant=variant), expected)
        close(average_pool(x, pool=pool, variant=variant)[:, 0, 0], x.double().mean((1, 2)), 1e-4)
    pool.close()


X = np.ones((2, 4, 6), np.float32)


@pytest.mark.parametrize(
    ("place", "fact", "arguments"),
    [
        ("x", "2 dimensions", {"x": X[0]}),
        ("x", "float64", {"x": X.astype(np.float64)}),
        ("x", "strides", {"x": X[:, :, ::2]}),
        ("x", "0 x 6", {"x": X[:, :0]}),
        ("out", "ask for", {"out": np.empty((2, 2, 6), np.float32)}),
        ("out", "overlaps x", {"out": X.reshape(-1)[:2].reshape(2, 1, 1)}),
        ("variant", "no variant", {"variant": "sse9"}),
    ],
)
def test_refused(place: str, fact: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(kernels.KernelError) as caught:
        average_pool(**({"x": X} | arguments))
    assert caught.value.place == place
    assert fact in caught.value.fact
    assert caught.value.remedy in str(caught.value)
