"""depthwise against torch in fp64: every variant, random windows and types, depth multipliers, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coppice import kernels
from coppice.kernels import ACTIVATIONS, Pool, Window, depthwise
from kernelkit import EPSILON, SIZES, UNITS, WINDOWS, available, close

VARIANTS = available("depthwise")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def agrees(y: Any, weight: Any, x: Any, window: Window, sources: list[int], bias: Any, activation: str) -> None:
    """Of n products and the bias, n + 1 roundings err by EPSILON / 2 of all magnitudes at most; twice it.

    No activation is steeper than 1.5 or off by more than 1e-6 of 1 + |sum| itself. Then comes the rounding to the type.
    """
    assert y.shape == (len(sources), *window.out(*x.shape[1:]))
    if y.numel() == 0:
        return
    rest = (window.stride, window.padding, window.dilation, len(sources))
    x, weight = x.double()[sources][None], weight.double()[:, None]
    bias = torch.zeros(len(sources)).double() if bias is None else bias.double()
    exact = torch.nn.functional.conv2d(x, weight, bias, *rest)[0]
    magnitude = torch.nn.functional.conv2d(x.abs(), weight.abs(), bias.abs(), *rest)[0]
    off = (weight[0].numel() + 1) * EPSILON * magnitude
    if activation not in ("none", "relu", "relu6"):
        off = 1.5 * off + 1e-6 * (1 + exact.abs())
        exact = getattr(torch.nn.functional, activation)(exact)
    close(y, exact.clamp(*ACTIVATIONS[activation][1:]), off)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.integers(1, 6),
    size=SIZES,
    window=WINDOWS,
    multiplier=st.integers(1, 3),
    kind=st.sampled_from(sorted(UNITS)),
    with_bias=st.booleans(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    gap=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_grouped_convolution_of_torch(
    variant: str,
    channels: int,
    size: tuple[int, int],
    window: Window,
    multiplier: int,
    kind: str,
    with_bias: bool,
    activation: str,
    gap: int,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(channels, size[0], size[1] + gap, generator=random).to(getattr(torch, kind))[:, :, gap:]
    rows = channels * multiplier
    weight = torch.randn(rows, *window.kernel, generator=random)
    bias = torch.randn(rows, generator=random) if with_bias else None
    y = depthwise(weight, x, window=window, bias=bias, activation=activation, variant=variant)
    assert y.dtype == x.dtype
    agrees(y, weight, x, window, [row // multiplier for row in range(rows)], bias, activation)


@pytest.mark.parametrize("width", [1, 2, 7, 14, 15, 16, 17, 28, 33, 56, 112])
@pytest.mark.parametrize("stride", [1, 2])
def test_images_of_real_networks(variant: str, width: int, stride: int) -> None:
    torch.manual_seed(width)
    x, weight = torch.randn(3, width, width), torch.randn(3, 3, 3)
    window = Window((3, 3), (stride, stride), (1, 1))
    y = depthwise(weight, x, window=window, activation="relu6", variant=variant)
    agrees(y, weight, x, window, [0, 1, 2], None, "relu6")


def test_rows_may_take_any_channel(variant: str) -> None:
    torch.manual_seed(0)
    x, weight, sources = torch.randn(4, 9, 20), torch.randn(6, 3, 3), [3, 3, 0, 1, 3, 0]
    y = depthwise(weight, x, sources=sources, variant=variant)
    agrees(y, weight, x, Window((3, 3)), sources, None, "none")


@pytest.mark.skipif(not kernels.status().library, reason="needs the C library")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work(variant: str, threads: int) -> None:
    torch.manual_seed(threads)
    pool = Pool(threads)
    for channels in (1, 2, 7):
        x, weight, window = torch.randn(channels, 20, 33), torch.randn(channels, 5, 5), Window((5, 5), (2, 2), (2, 2))
        y = depthwise(weight, x, window=window, pool=pool, variant=variant)
        agrees(y, weight, x, window, list(range(channels)), None, "none")
    pool.close()


def test_nan_and_infinity_stay_where_they_are(variant: str) -> None:
    x = torch.zeros(1, 9, 40)
    x[0, 4, 20], x[0, 4, 38] = torch.nan, torch.inf
    y = depthwise(torch.ones(1, 3, 3), x, activation="relu6", variant=variant)
    assert torch.equal(
        y.isnan().nonzero()[:, 1:].unique(dim=0), torch.cartesian_prod(torch.arange(2, 5), torch.arange(18, 21))
    )
    assert y[0, 3, 36] == 6


X = np.ones((2, 5, 8), np.float32)
WEIGHT = np.ones((2, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("place", "fact", "arguments"),
    [
        ("x", "2 dimensions", {"x": X[0]}),
        ("x", "float64", {"x": X.astype(np.float64)}),
        ("x", "strides", {"x": X[:, :, ::2]}),
        ("weight", "kernels of 3 x 3", {"window": Window((3, 5))}),
        ("weight", "float16", {"weight": WEIGHT.astype(np.float16)}),
        ("weight", "3 kernels for 2 channels", {"weight": np.ones((3, 3, 3), np.float32)}),
        ("weight", "kernels must follow", {"weight": np.ones((4, 3, 3), np.float32)[::2]}),
        ("sources", "not integers", {"sources": [0.0, 1.0]}),
        ("sources", "not integers", {"sources": [0, 1, 0]}),
        ("sources", "channels 0 .. 1", {"sources": [0, 2]}),
        ("sources", "channels 0 .. 1", {"sources": [-1, 0]}),
        ("bias", "ask for", {"bias": np.ones(3, np.float32)}),
        ("out", "ask for", {"out": np.empty((2, 3, 5), np.float32)}),
        ("out", "overlaps x", {"out": X.reshape(-1)[:36].reshape(2, 3, 6)}),
        ("activation", "no 'tanh'", {"activation": "tanh"}),
        ("variant", "no variant", {"variant": "sse9"}),
    ],
)
def test_refused(place: str, fact: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(kernels.KernelError) as caught:
        depthwise(**({"weight": WEIGHT, "x": X} | arguments))
    assert caught.value.place == place
    assert fact in caught.value.fact
    assert caught.value.remedy in str(caught.value)
