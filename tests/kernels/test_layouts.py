"""The layouts for few pixels: every variant against fp64, conversions, and arrays that Python and C refuse alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coppice.kernels import ACTIVATIONS, KernelError, Pool, Weight, Window, _load, matmul
from coppice.kernels._code import held_by_c
from coppice.kernels._convert import to_scipy
from kernelkit import EPSILON, available

VARIANTS = available("matmul")
TYPES = ("float32", "float16", "bfloat16", "int8")
PATTERNS = [(n, m) for m in (2, 4, 8, 16) for n in sorted({1, m // 2, m - 1})]

Array = NDArray[np.float32]


def sparse(random: np.random.Generator, rows: int, cols: int, density: float) -> Array:
    kept = random.random((rows, cols)) < density
    return np.where(kept, random.standard_normal((rows, cols)), 0).astype(np.float32)


def patterned(random: np.random.Generator, rows: int, cols: int, n: int, m: int) -> Array:
    """At most n values, as a rule n, in each group of m columns; cols is rounded down to a multiple of m."""
    groups = random.standard_normal((rows, cols // m, m)).astype(np.float32)
    least = np.argsort(np.abs(groups), axis=2)[:, :, : m - n]
    np.put_along_axis(groups, least, 0, axis=2)
    groups[random.random(groups.shape) < 0.05] = 0
    return groups.reshape(rows, cols // m * m)


def weights(random: np.random.Generator, layout: str, kind: Any, rows: int, cols: int, density: float) -> Weight:
    if layout == "n_of_m":
        n, m = PATTERNS[random.integers(len(PATTERNS))]
        return Weight.n_of_m(patterned(random, rows, cols, n, m), n, m, type=kind)
    matrix = sparse(random, rows, cols, density)
    return Weight.sell(matrix) if layout == "sell" else Weight.bitmask(matrix, type=kind)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(["bitmask", "n_of_m", "sell"]),
    kind=st.sampled_from(TYPES),
    rows=st.integers(0, 140),
    cols=st.integers(0, 700),
    pixels=st.integers(0, 20) | st.integers(0, 200),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    arithmetic=st.sampled_from(["float32", "int8"]),
    activation=st.sampled_from(["none", "relu", "relu6"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_products(
    variant: str,
    layout: str,
    kind: str,
    rows: int,
    cols: int,
    pixels: int,
    density: float,
    arithmetic: str,
    activation: str,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    weight = weights(random, layout, kind, rows, cols, density)
    x = random.standard_normal((weight.cols, pixels), np.float32)
    bias = random.standard_normal(rows, np.float32)
    y = matmul(weight, x, bias=bias, activation=activation, arithmetic=arithmetic, variant=variant)
    matrix = weight.to_dense().astype(np.float64)
    magnitude = np.abs(matrix) @ np.abs(x) + np.abs(bias)[:, None]
    entries = np.count_nonzero(matrix, axis=1)[:, None]
    off = (entries + 3) * EPSILON * magnitude
    if arithmetic == weight.type == "int8":
        greatest = np.abs(x).max(axis=0, initial=0)
        off += greatest / 254 * np.abs(matrix).sum(axis=1, keepdims=True) + (entries + 3) * EPSILON / 2 * magnitude
    exact = np.clip(matrix @ x + bias[:, None], *ACTIVATIONS[activation][1:])
    assert np.all(np.abs(y - exact) <= off + np.finfo(np.float32).tiny)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_arithmetic_is_exact_where_int8_is_not(variant: str) -> None:
    random = np.random.default_rng(0)
    weight = Weight.sell(sparse(random, 64, 256, 0.2))
    x = random.standard_normal((256, 1), np.float32)
    exact = weight.to_dense().astype(np.float64) @ x
    assert np.abs(matmul(weight, x, variant=variant) - exact).max() < 1e-5
    off = np.abs(matmul(weight, x, arithmetic="int8", variant=variant) - exact).max()
    assert off < 0.3
    if variant == "avx512_vnni":
        assert off > 1e-4


@pytest.mark.parametrize("layout", ["bitmask", "n_of_m", "sell"])
@pytest.mark.parametrize("pixels", [1, 3, 40])
def test_windows_and_threads(layout: str, pixels: int) -> None:
    random = np.random.default_rng(pixels)
    weight = weights(random, layout, "int8", 200, 4 * 2 * 2 * 16, 0.3)
    image = random.standard_normal((weight.cols // 4, 2, pixels + 1), np.float32)
    window = Window((2, 2))
    expected = matmul(Weight.sparse(weight, type="int8"), image, window=window)
    pool = Pool(3)
    y = matmul(weight, image, window=window, pool=pool)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    x = random.standard_normal((weight.cols, pixels), np.float32)
    alone = matmul(weight, x, arithmetic="int8")
    np.testing.assert_allclose(matmul(weight, x, arithmetic="int8", pool=pool), alone, rtol=1e-4, atol=1e-4)
    pool.close()


@settings(max_examples=100, deadline=None)
@given(
    layout=st.sampled_from(["bitmask", "n_of_m", "sell"]),
    kind=st.sampled_from(TYPES),
    rows=st.integers(0, 140),
    cols=st.integers(0, 700),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_conversions_change_nothing(layout: str, kind: Any, rows: int, cols: int, density: float, seed: int) -> None:
    weight = weights(np.random.default_rng(seed), layout, kind, rows, cols, density)
    matrix, kind = weight.to_dense(), weight.type
    row, column = weight.places()
    assert np.count_nonzero(matrix) == np.count_nonzero(matrix[row, column])
    assert np.array_equal(to_scipy(weight).toarray(), matrix)
    others = [Weight.sparse(weight, type=kind), Weight.sparse(weight, type=kind, height=4),
              Weight.dense(weight, type=kind), Weight.bitmask(weight, type=kind)]  # fmt: skip
    if kind == "int8":
        others.append(Weight.sell(weight))
    if weight.group:
        others.append(Weight.n_of_m(weight, weight.kept, weight.group, type=kind))
    for other in others:
        assert np.array_equal(other.to_dense(), matrix)
    again = Weight.from_bytes(weight.to_bytes())
    assert (again.layout, repr(again), again.nbytes) == (weight.layout, repr(weight), weight.nbytes)
    assert np.array_equal(again.to_dense(), matrix)


def test_sell_wastes_little() -> None:
    """The moving window fills 92 % at 90 % zeros, where fixed groups of 64 columns fill 52 %."""
    weight = Weight.sell(sparse(np.random.default_rng(0), 768, 768, 0.1))
    assert np.count_nonzero(weight.values) / weight.values.size > 0.9
    assert weight.nbytes < 2.4 * np.count_nonzero(weight.values) + 8 * weight.rows


def test_a_matrix_without_the_pattern_is_refused() -> None:
    matrix = np.zeros((3, 8), np.float32)
    matrix[2, 4:7] = 1
    assert Weight.n_of_m(matrix, 3, 4).density == 0.75
    with pytest.raises(KernelError, match=r"row 2 has 3 values in columns 4 .. 7\n  remedy: keep the 2 largest"):
        Weight.n_of_m(matrix, 2, 4)
    with pytest.raises(KernelError, match="8 columns are no multiple of 16"):
        Weight.n_of_m(matrix, 2, 16)
    for n, m in ((0, 4), (4, 4), (1, 3), (2, 32)):
        with pytest.raises(KernelError, match=f"n, m: {n} of {m}"):
            Weight.n_of_m(matrix, n, m)
    with pytest.raises(KernelError, match="4194305 columns"):
        Weight.sell(np.zeros((1, (1 << 22) + 1), np.float32))


BITMASK = Weight.bitmask(np.eye(5, 70, dtype=np.float32))
PATTERN = Weight.n_of_m(np.eye(5, 8, dtype=np.float32), 2, 4)
SLICED = Weight.sell(np.tri(70, 300, dtype=np.float32))


def changed(array: NDArray[Any], place: Any, value: int) -> NDArray[Any]:
    copy = array.copy()
    copy[place] = value
    return copy


@pytest.mark.parametrize(
    ("weight", "field", "change"),
    [
        (BITMASK, "starts", lambda w: {"starts": changed(w.starts, 0, 1)}),
        (BITMASK, "starts", lambda w: {"starts": changed(w.starts, 1, 4)}),
        (BITMASK, "starts", lambda w: {"masks": changed(w.masks, (0, 0), 3)}),
        (BITMASK, "masks", lambda w: {"masks": changed(changed(w.masks, (4, 0), 0), (4, 1), 1 << 6)}),
        (BITMASK, "masks", lambda w: {"masks": w.masks[:, :1]}),
        (BITMASK, "masks", lambda w: {"masks": w.masks.astype(np.int64)}),
        (BITMASK, "height", lambda w: {"height": 4}),
        (BITMASK, "slab", lambda w: {"slab": 64}),
        (BITMASK, "offsets", lambda w: {"offsets": np.zeros((5, 16, 4), np.uint8)}),
        (BITMASK, "columns", lambda w: {"columns": np.zeros(5, np.uint16)}),
        (PATTERN, "kept and Weight.group", lambda w: {"kept": 4}),
        (PATTERN, "kept and Weight.group", lambda w: {"group": 3}),
        (PATTERN, "cols", lambda w: {"cols": 6}),
        (PATTERN, "values", lambda w: {"kept": 1}),
        (PATTERN, "positions", lambda w: {"positions": changed(w.positions, (0, 0, 4), 0)}),
        (PATTERN, "positions", lambda w: {"positions": w.positions[:, :, :8]}),
        (SLICED, "height", lambda w: {"type": "float16"}),
        (SLICED, "columns", lambda w: {"columns": changed(w.columns, 3, 5)}),
        (SLICED, "offsets", lambda w: {"offsets": changed(w.offsets, (0, 0, 1), 0)}),
        (SLICED, "offsets", lambda w: {"offsets": w.offsets[1:]}),
        (SLICED, "lanes", lambda w: {"lanes": changed(w.lanes, 69, 16)}),
        (SLICED, "lanes", lambda w: {"lanes": changed(w.lanes, 0, w.lanes[1])}),
        (SLICED, "starts", lambda w: {"starts": w.starts[::-1].copy()}),
    ],
)
def test_contradictions(weight: Weight, field: str, change: Any) -> None:
    with pytest.raises(KernelError) as caught:
        replace(weight, **change(weight))
    assert caught.value.place == f"Weight.{field}"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_python_and_c_refuse_the_same(data: st.DataObject) -> None:
    """Any element of any array changed: what Python lets through, C does, and then the product stays inside."""
    library = _load.load()
    weight = data.draw(st.sampled_from([BITMASK, PATTERN, SLICED]))
    names = [name for name in ("starts", "columns", "masks", "positions", "offsets", "lanes")
             if getattr(weight, name) is not None]  # fmt: skip
    arrays = {}
    for name in data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=2)):
        array = getattr(weight, name).copy()
        place = data.draw(st.integers(0, array.size - 1))
        most, before = np.iinfo(array.dtype).max, int(array.ravel()[place])
        near = st.sampled_from([(before + by) % (most + 1) for by in (-3, -2, -1, 1, 2, 3)])
        array.ravel()[place] = data.draw(near | st.integers(0, most))
        arrays[name] = array
    held = library.ffi.new("coppice_weight *")
    held_by_c(library, weight, held)
    for name, array in arrays.items():
        setattr(held, name, library.ffi.cast("void *", array.ctypes.data))
    accepted = library.c.coppice_weight_validate(held) == library.c.COPPICE_OK
    try:
        made = replace(weight, **arrays)
    except KernelError:
        assert not accepted
        return
    assert accepted
    x = np.ones((weight.cols, 1), np.float32)
    np.testing.assert_allclose(matmul(made, x, arithmetic="int8"), made.to_dense() @ x, rtol=1e-2, atol=1e-2)
