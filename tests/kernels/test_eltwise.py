"""eltwise against fp64: every variant, all types, in place, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coppice import kernels
from coppice.kernels import ACTIVATIONS, Pool, eltwise
from kernelkit import EPSILON, UNITS, available, close

VARIANTS = available("eltwise")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def agrees(y: torch.Tensor, x: Any, z: Any, a: float, b: float, activation: str) -> None:
    """Two products and a sum round by half an epsilon of the magnitudes each; twice that.

    No activation is steeper than 1.5 or off by more than 1e-6 of 1 + |sum| itself.
    """
    first = float(np.float32(a)) * x.double()
    second = torch.zeros(()) if z is None else float(np.float32(b)) * z.double()
    exact, off = first + second, 2 * EPSILON * (first.abs() + second.abs())
    if activation not in ("none", "relu", "relu6"):
        off = 1.5 * off + 1e-6 * (1 + exact.abs())
        exact = getattr(torch.nn.functional, activation)(exact)
    close(y, exact.clamp(*ACTIVATIONS[activation][1:]), off)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 12),
    columns=st.integers(0, 100),
    kinds=st.tuples(*[st.sampled_from(sorted(UNITS))] * 3),
    added=st.booleans(),
    place=st.sampled_from(["new", "x", "z"]),
    factors=st.tuples(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32)),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    gap=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_random(
    variant: str,
    rows: int,
    columns: int,
    kinds: tuple[str, str, str],
    added: bool,
    place: str,
    factors: tuple[float, float],
    activation: str,
    gap: int,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    x, z = (torch.randn(rows, columns + gap, generator=random).to(getattr(torch, kind))[:, gap:] for kind in kinds[:2])
    before = x.clone(), z.clone() if added else None
    out = {"new": None, "x": x, "z": z if added else None}[place]
    kind = None if out is not None else kinds[2]
    a, b = factors
    y = eltwise(x, z if added else None, a=a, b=b, activation=activation, type=kind, out=out, variant=variant)
    assert out is None or y is out
    assert out is not None or str(y.dtype) == f"torch.{kinds[2]}"
    agrees(y, *before, a, b, activation)


@pytest.mark.parametrize("source", sorted(UNITS))
@pytest.mark.parametrize("target", sorted(UNITS))
def test_casts_are_those_of_torch(variant: str, source: str, target: str) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.float16).reshape(256, 256)
    x = every.to(getattr(torch, source))
    expected = x.to(getattr(torch, target))
    y = eltwise(x, type=target, variant=variant)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


def test_more_axes_are_one(variant: str) -> None:
    x, z = torch.randn(4, 5, 6, 7), torch.randn(4, 5, 6, 7)
    torch.testing.assert_close(eltwise(x, z, activation="relu", variant=variant), torch.relu(x + z))


@pytest.mark.skipif(not kernels.status().library, reason="needs the C library")
def test_threads_share_the_work(variant: str) -> None:
    torch.manual_seed(0)
    pool = Pool(3)
    for shape in ((1, 100), (2, 33), (40, 49)):
        x, z = torch.randn(*shape), torch.randn(shape[0], shape[1] + 1)[:, 1:]
        agrees(eltwise(x, z, pool=pool, variant=variant), x, z, 1.0, 1.0, "none")
    pool.close()


X = np.ones((4, 6), np.float32)


@pytest.mark.parametrize(
    ("place", "fact", "arguments"),
    [
        ("x", "1 dimensions", {"x": X[0]}),
        ("x", "float64", {"x": X.astype(np.float64)}),
        ("z", "ask for", {"z": X[:3]}),
        ("z", "3 dimensions", {"z": X[None]}),
        ("type", "no 'int8'", {"type": "int8"}),
        ("type", "numpy has no bfloat16", {"type": "bfloat16"}),
        ("out", "ask for", {"out": np.empty((4, 5), np.float32)}),
        ("out", "ask for", {"out": np.empty((4, 6), np.float32), "type": "float16"}),
        ("out", "overlaps x", {"out": X.reshape(-1)[:12].view(np.float16).reshape(4, 6)}),
        ("activation", "range", {"activation": (1.0, 0.0)}),
        ("variant", "no variant", {"variant": "sse9"}),
    ],
)
def test_refused(place: str, fact: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(kernels.KernelError) as caught:
        eltwise(**({"x": X} | arguments))
    assert caught.value.place == place
    assert fact in caught.value.fact
    assert caught.value.remedy in str(caught.value)
