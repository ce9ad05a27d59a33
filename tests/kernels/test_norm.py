"""layer_norm and rms_norm against fp64: every variant, both layouts, far from zero, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coppice import kernels
from coppice.kernels import Pool, layer_norm, rms_norm
from kernelkit import EPSILON, UNITS, available, close

VARIANTS = available("norm")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def agrees(y: Any, x: Any, weight: Any, bias: Any, eps: float, axis: int, rms: bool) -> None:
    """With u an epsilon, n channels and sigma = sqrt(variance + eps).

    The mean errs by n u mean|x|, all differences from it by as much, which adds its square to the variance; sums of n
    squares err by (n + 6) u of themselves, and the rest is a few roundings.
    """
    x, n, along = x.double(), x.shape[axis], (-1, 1) if axis == 0 else (1, -1)
    mean = torch.zeros(()) if rms else x.mean(axis, keepdim=True)
    shift = 0.0 if rms else n * EPSILON * x.abs().mean(axis, keepdim=True)
    sigma = ((x - mean).square().mean(axis, keepdim=True) + eps).sqrt()
    weight = torch.ones(n) if weight is None else weight
    bias = torch.zeros(n) if bias is None else bias
    weight, bias = weight.double().reshape(along), bias.double().reshape(along)
    value = (x - mean) / sigma
    exact = value * weight + bias
    off = weight.abs() * (shift / sigma + value.abs() * ((shift / sigma) ** 2 + (n + 12) * EPSILON))
    close(y, exact, off + 2 * EPSILON * (exact.abs() + bias.abs()))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.integers(1, 200),
    tokens=st.integers(0, 150),
    axis=st.sampled_from([0, 1]),
    kind=st.sampled_from(sorted(UNITS)),
    rms=st.booleans(),
    with_weight=st.booleans(),
    with_bias=st.booleans(),
    centre=st.sampled_from([0.0, 0.0, 30.0]),
    in_place=st.booleans(),
    gap=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_random(
    variant: str,
    channels: int,
    tokens: int,
    axis: int,
    kind: str,
    rms: bool,
    with_weight: bool,
    with_bias: bool,
    centre: float,
    in_place: bool,
    gap: int,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    rows, columns = (channels, tokens) if axis == 0 else (tokens, channels)
    x = (torch.randn(rows, columns + gap, generator=random) + centre).to(getattr(torch, kind))[:, gap:]
    weight = torch.randn(channels, generator=random) if with_weight else None
    bias = torch.randn(channels, generator=random) if with_bias else None
    function, before = rms_norm if rms else layer_norm, x.clone()
    y = function(x, weight, bias, eps=1e-4, axis=axis, out=x if in_place else None, variant=variant)
    assert (y is x) == in_place
    assert y.dtype == x.dtype
    agrees(y, before, weight, bias, 1e-4, axis, rms)


def test_they_are_those_of_torch(variant: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 96), torch.randn(96), torch.randn(96)
    layer = torch.nn.functional.layer_norm(x, (96,), weight, bias)
    torch.testing.assert_close(layer_norm(x, weight, bias, axis=-1, variant=variant), layer, rtol=1e-4, atol=1e-5)
    rms = torch.nn.functional.rms_norm(x, (96,), weight, 1e-6)
    torch.testing.assert_close(rms_norm(x.T.contiguous(), weight, variant=variant).T, rms, rtol=1e-4, atol=1e-5)


def test_nan_and_infinity_stay_in_their_token(variant: str) -> None:
    for axis in (0, 1):
        x = torch.randn(30, 30)
        x[3, 4], x[7, 8] = torch.nan, torch.inf
        broken = layer_norm(x, axis=axis, variant=variant).isnan().all(axis)
        assert broken.nonzero().flatten().tolist() == ([4, 8] if axis == 0 else [3, 7])
        assert int(rms_norm(x, axis=axis, variant=variant).isnan().sum()) == 31  # finite / inf is 0


@pytest.mark.skipif(not kernels.status().library, reason="needs the C library")
@pytest.mark.parametrize("axis", [0, 1])
def test_threads_share_the_work(variant: str, axis: int) -> None:
    torch.manual_seed(axis)
    pool = Pool(3)
    for shape in ((7, 100), (100, 7), (1, 1)):
        x = torch.randn(*shape)
        agrees(layer_norm(x, axis=axis, pool=pool, variant=variant), x, None, None, 1e-5, axis, False)
    pool.close()


X = np.ones((4, 6), np.float32)


@pytest.mark.parametrize(
    ("place", "fact", "arguments"),
    [
        ("x", "1 dimensions", {"x": X[0]}),
        ("x", "float64", {"x": X.astype(np.float64)}),
        ("x", "strides", {"x": X[:, ::2]}),
        ("weight", "ask for", {"weight": np.ones(6, np.float32)}),
        ("weight", "ask for", {"weight": np.ones(4, np.float32), "axis": 1}),
        ("bias", "ask for", {"bias": np.ones(4, np.float16)}),
        ("axis", "2 is not", {"axis": 2}),
        ("eps", "-1", {"eps": -1.0}),
        ("eps", "nan", {"eps": float("nan")}),
        ("out", "ask for", {"out": np.empty((6, 4), np.float32)}),
        ("variant", "no variant", {"variant": "sse9"}),
    ],
)
def test_refused(place: str, fact: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(kernels.KernelError) as caught:
        layer_norm(**({"x": X} | arguments))
    assert caught.value.place == place
    assert fact in caught.value.fact
    assert caught.value.remedy in str(caught.value)
