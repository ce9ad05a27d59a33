"""The layout by measuring: what is tried, what is chosen, and that all of it is the same matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coppice import kernels
from coppice.kernels import KernelError, Window, _fastest, fastest, matmul

CODE = kernels.isa().startswith("avx512")


def matrix(rows: int, cols: int, height: int, density: float) -> NDArray[np.float32]:
    """Non-zeros in blocks of ``height`` rows."""
    random = np.random.default_rng(7)
    kept = np.repeat(random.random((-(-rows // height), cols)) < density, height, axis=0)[:rows]
    values: NDArray[np.float32] = (random.standard_normal((rows, cols)) * kept).astype(np.float32)
    return values


X = np.random.default_rng(0).standard_normal((60, 40)).astype(np.float32)


def families(layouts: dict[str, float]) -> set[str]:
    return {name.partition("/")[0] for name in layouts}


@pytest.mark.parametrize("height", [1, 4, 8, 16])
def test_blocks_are_tried_where_the_zeros_form_them(height: int) -> None:
    choice = fastest(matrix(48, 60, height, 0.2), X, seconds=0)
    tried = families(choice.microseconds)
    assert {f"{h}x1" for h in (4, 8, 16) if h <= height} <= tried
    assert tried - {"4x1", "8x1", "16x1"} == {"csr", "dense"} | ({"code"} if CODE else set())
    assert height > 1 or not tried & {"4x1", "8x1", "16x1"}
    assert list(choice.microseconds.values()) == sorted(choice.microseconds.values())
    assert choice.layout in choice.microseconds


@pytest.mark.parametrize("chosen", ["csr", "code", "4x1", "dense"])
def test_what_is_chosen_is_the_matrix(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    if chosen == "code" and not CODE:
        pytest.skip("straight-line code needs AVX-512")
    values = matrix(50, 60, 4, 0.2)
    every = list(fastest(values, X, seconds=0).microseconds)
    order = [name for name, _ in _fastest._candidates(values, X, None, "float32", None)]
    assert sorted(order) == sorted(every)
    first = next(name for name in order if name.startswith(chosen))
    monkeypatch.setattr(
        _fastest, "_taken", lambda calls, x, seconds: [1e-6 if name == first else 1e-3 for name in order]
    )
    choice = fastest(values, X)
    assert choice.layout == first
    assert (choice.weight.code is not None) == (chosen == "code")
    np.testing.assert_array_equal(choice.weight.to_dense(), values)
    np.testing.assert_allclose(matmul(choice.weight, X), values @ X, rtol=1e-4, atol=1e-4)


def test_of_equals_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _fastest, "_taken", lambda calls, x, seconds: [1.0 + 0.001 * i for i in range(len(calls))][::-1]
    )
    choice = fastest(matrix(64, 60, 16, 0.1), X)
    assert choice.layout == "16x1"  # the fewest indices, and none of it is fill


def test_convolutions_and_types() -> None:
    image = torch.randn(6, 9, 9).bfloat16()
    window = Window((3, 3), padding=(1, 1))
    choice = fastest(matrix(16, 54, 4, 0.3), image, window=window, type="bfloat16", arithmetic="bfloat16", seconds=0)
    assert choice.weight.type == "bfloat16"
    assert matmul(choice.weight, image, window=window).shape == (16, 9, 9)


@pytest.mark.parametrize(("rows", "cols"), [(0, 60), (5, 0), (0, 0), (3, 60)])
def test_nothing_to_choose_from(rows: int, cols: int) -> None:
    values = np.zeros((rows, cols), np.float32)
    choice = fastest(values, X[:cols], seconds=0)
    assert choice.weight.to_dense().shape == (rows, cols)


@pytest.mark.parametrize(
    ("fact", "arguments"),
    [
        ("below zero", {"seconds": -1.0}),
        ("below zero", {"seconds": float("nan")}),
        ("not float32", {"matrix": np.zeros((4, 60))}),
        ("the other arguments ask", {"x": X[:10]}),
        ("there is no 'float8'", {"arithmetic": "float8"}),
    ],
)
def test_refusals(fact: str, arguments: dict[str, Any]) -> None:
    held = {"matrix": matrix(8, 60, 1, 0.2), "x": X, **arguments}
    with pytest.raises(KernelError, match=fact):
        fastest(held.pop("matrix"), held.pop("x"), **held)
