"""matmul against fp64: every variant, random shapes, the edges, views, aliases and special values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coppice import kernels
from coppice.kernels import ACTIVATIONS, Pool, Weight, Window, matmul
from kernelkit import EPSILON, SIZES, UNITS, WINDOWS, available

VARIANTS = available("matmul")

Array = NDArray[np.float32]


def sparse(random: np.random.Generator, rows: int, cols: int, density: float) -> Array:
    kept = random.random((rows, cols)) < density
    return np.where(kept, random.standard_normal((rows, cols)), 0).astype(np.float32)


#: What an activation may err by beyond the rounding of its sum, relative to 1 + |sum|, and its name in torch.
CURVES = {"hardswish": 1e-6, "sigmoid": 4e-7, "silu": 4e-7, "gelu": 4e-7}


def agrees(y: Array, weight: Array, x: Array, bias: Any, residual: Any, activation: str, kind: str = "float32") -> None:
    """Of n products, scale, bias and residual, n + 3 roundings err by EPSILON / 2 of all magnitudes at most; twice it.

    No activation is steeper than 1.5. Then comes the rounding to the type of y.
    """
    exact, magnitude = weight.astype(np.float64) @ x, np.abs(weight).astype(np.float64) @ np.abs(x)
    for part in (None if bias is None else bias[:, None], residual):
        if part is not None:
            exact, magnitude = exact + part, magnitude + np.abs(part)
    off = (np.count_nonzero(weight, axis=1)[:, None] + 3) * EPSILON * magnitude
    if activation in CURVES:
        off = 1.5 * off + CURVES[activation] * (1 + np.abs(exact))
        exact = getattr(torch.nn.functional, activation)(torch.from_numpy(exact)).numpy()
    exact = np.clip(exact, *ACTIVATIONS[activation][1:])
    bound = off + UNITS[kind] * (np.abs(exact) + off) + (2.0**-25 if kind == "float16" else np.finfo(np.float32).tiny)
    assert np.all(np.abs(y - exact) <= bound)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    cols=st.integers(0, 300),
    pixels=st.integers(0, 200),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    slab=st.sampled_from([None, 1, 7, 64, 65536]),
    height=st.sampled_from([1, 4, 8, 16]),
    x_gap=st.integers(0, 9),
    y_gap=st.integers(0, 9),
    with_bias=st.booleans(),
    residual_kind=st.sampled_from(["none", "apart", "in place"]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_random(
    variant: str,
    rows: int,
    cols: int,
    pixels: int,
    density: float,
    slab: int | None,
    height: int,
    x_gap: int,
    y_gap: int,
    with_bias: bool,
    residual_kind: str,
    activation: str,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    weight = sparse(random, rows, cols, density)
    x = random.standard_normal((cols, pixels + x_gap), np.float32)[:, x_gap:]  # begins at any 4-byte address
    canvas = random.standard_normal((rows, pixels + y_gap), np.float32)
    untouched, out = canvas[:, :y_gap].copy(), canvas[:, y_gap:]
    bias = random.standard_normal(rows, np.float32) if with_bias else None
    before = {"none": None, "apart": random.standard_normal((rows, pixels), np.float32), "in place": out.copy()}
    residual = out if residual_kind == "in place" else before[residual_kind]
    held = Weight.sparse(weight, slab=slab, height=height)
    y = matmul(held, x, out=out, bias=bias, residual=residual, activation=activation, variant=variant)
    assert y is out
    agrees(y, weight, x, bias, before[residual_kind], activation)
    assert np.array_equal(canvas[:, :y_gap], untouched)


@pytest.mark.parametrize("pixels", [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 79, 80, 81, 96, 159, 161, 513])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_tails(variant: str, pixels: int, density: float) -> None:
    random = np.random.default_rng(pixels)
    weight, x = sparse(random, 9, 130, density), random.standard_normal((130, pixels), np.float32)
    agrees(matmul(Weight.sparse(weight), x, variant=variant), weight, x, None, None, "none")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    cols=st.integers(0, 200),
    pixels=st.integers(0, 200),
    density=st.sampled_from([0.0, 0.1, 0.5, None]),
    height=st.sampled_from([1, 4, 8, 16]),
    weight_type=st.sampled_from(["float32", "float16", "bfloat16", "int8"]),
    kind=st.sampled_from(["float32", "float16", "bfloat16"]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_types_layouts_and_activations(
    variant: str,
    rows: int,
    cols: int,
    pixels: int,
    density: float | None,
    height: int,
    weight_type: Any,
    kind: str,
    activation: str,
    with_residual: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    matrix = sparse(random, rows, cols, 1.0 if density is None else density)
    if density is None:
        weight = Weight.dense(matrix, height=max(4, height), type=weight_type)
    else:
        weight = Weight.sparse(matrix, height=height, type=weight_type)
    type_ = getattr(torch, kind)
    x = torch.from_numpy(random.standard_normal((cols, pixels), np.float32)).to(type_)
    residual = torch.from_numpy(random.standard_normal((rows, pixels), np.float32)).to(type_) if with_residual else None
    y = matmul(weight, x, residual=residual, activation=activation, variant=variant)
    assert y.dtype == type_
    held = None if residual is None else residual.float().numpy()
    agrees(y.float().numpy(), weight.to_dense(), x.float().numpy(), None, held, activation, kind)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    cols=st.integers(0, 400),
    pixels=st.integers(0, 200),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    height=st.sampled_from([1, 4, 8, 16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_float16_arithmetic(
    variant: str, rows: int, cols: int, pixels: int, density: float, height: int, seed: int
) -> None:
    """Off by no more than ``matmul`` says, whether the variant makes use of the permission or not."""
    random = np.random.default_rng(seed)
    weight = Weight.sparse(sparse(random, rows, cols, density), height=height, type="float16")
    x = random.standard_normal((cols, pixels), np.float32).astype(np.float16)
    y = matmul(weight, x, arithmetic="float16", variant=variant).astype(np.float64)
    matrix = weight.to_dense().astype(np.float64)
    exact, magnitude = matrix @ x.astype(np.float64), np.abs(matrix) @ np.abs(x.astype(np.float64))
    entries = np.count_nonzero(matrix, axis=1)[:, None]
    off = (np.minimum(entries, 128) * 2.0**-10 + (entries + 3) * EPSILON) * magnitude + entries * 2.0**-24
    assert np.all(np.abs(y - exact) <= off + UNITS["float16"] * (np.abs(exact) + off) + 2.0**-25)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.integers(1, 5),
    size=SIZES,
    window=WINDOWS,
    height=st.sampled_from([1, 4, 8, 16]),
    gap=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_convolutions_are_those_of_torch(
    variant: str,
    channels: int,
    size: tuple[int, int],
    window: Window,
    height: int,
    gap: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    matrix = sparse(random, 11, channels * window.kernel[0] * window.kernel[1], 0.4)
    x = random.standard_normal((channels, size[0], size[1] + gap), np.float32)[:, :, gap:]
    weight = Weight.sparse(matrix, height=height)
    bias = random.standard_normal(11).astype(np.float32)
    y = matmul(weight, x, window=window, bias=bias, activation="relu", variant=variant)
    assert y.shape == (11, *window.out(*size))
    if y.size:
        kernels_of_torch = torch.from_numpy(matrix).double().reshape(11, channels, *window.kernel)
        expected = torch.nn.functional.conv2d(
            torch.from_numpy(np.ascontiguousarray(x)).double()[None], kernels_of_torch, torch.from_numpy(bias).double(),
            window.stride, window.padding, window.dilation,
        )[0].relu()  # fmt: skip
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_padding_may_be_uneven(variant: str) -> None:
    """TensorFlow's "same" pads a row and a column at the end only."""
    random = np.random.default_rng(0)
    matrix, x = sparse(random, 4, 18, 0.5), random.standard_normal((2, 8, 10), np.float32)
    y = matmul(Weight.sparse(matrix), x, window=Window((3, 3), (2, 2), after=(1, 1)), variant=variant)
    wide = torch.nn.functional.pad(torch.from_numpy(x), (0, 1, 0, 1))[None]
    expected = torch.nn.functional.conv2d(wide, torch.from_numpy(matrix).reshape(4, 2, 3, 3), stride=2)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def has_code() -> bool:
    """Whether this build of the library writes straight-line code."""
    try:
        Weight.sparse(np.eye(4, dtype=np.float32)).compiled()
    except kernels.KernelError:
        return False
    return True


needs_code = pytest.mark.skipif(not has_code(), reason="straight-line code is for x86-64")


@needs_code
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 90),
    cols=st.integers(0, 400),
    pixels=st.integers(0, 200),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    slab=st.sampled_from([None, 7, 130]),
    kind=st.sampled_from(["float32", "float16", "bfloat16"]),
    activation=st.sampled_from(["none", "relu6", "silu"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_straight_line_code(
    variant: str,
    rows: int,
    cols: int,
    pixels: int,
    density: float,
    slab: int | None,
    kind: str,
    activation: str,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    matrix = sparse(random, rows, cols, density)
    weight = Weight.sparse(matrix, slab=slab).compiled()
    x = torch.from_numpy(random.standard_normal((cols, pixels), np.float32)).to(getattr(torch, kind))
    y = matmul(weight, x, activation=activation, variant=variant)
    agrees(y.float().numpy(), matrix, x.float().numpy(), None, None, activation, kind)


@needs_code
def test_code_is_kept_by_content(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    matrix, x = sparse(random, 30, 70, 0.2), random.standard_normal((70, 40), np.float32)
    weight = Weight.sparse(matrix)
    first = weight.compiled(tmp_path / "codes")
    (file,) = (tmp_path / "codes").iterdir()
    written = file.stat().st_mtime_ns
    again = Weight.sparse(matrix).compiled(tmp_path / "codes")
    assert file.stat().st_mtime_ns == written
    assert first.code is not None and again.code is not None
    assert first.code.nbytes == again.code.nbytes == file.stat().st_size
    for held in (first, again):
        agrees(matmul(held, x), matrix, x, None, None, "none")
    Weight.sparse(matrix * 2).compiled(tmp_path / "codes")
    assert len(list((tmp_path / "codes").iterdir())) == 2
    file.write_bytes(file.read_bytes()[:100])  # a full disk, say
    agrees(matmul(weight.compiled(tmp_path / "codes"), x), matrix, x, None, None, "none")


@needs_code
def test_only_rows_one_by_one_have_code() -> None:
    matrix = np.eye(8, dtype=np.float32)
    for weight in (Weight.sparse(matrix, height=4), Weight.dense(matrix)):
        with pytest.raises(kernels.KernelError, match="layout"):
            weight.compiled()


@pytest.mark.skipif(not kernels.status().library, reason="needs the C library")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work(variant: str, threads: int) -> None:
    random = np.random.default_rng(3)
    pool = Pool(threads)
    for rows, pixels in ((5, 1), (40, 1), (33, 700), (3, 90), (64, 17)):
        weight, x = sparse(random, rows, 60, 0.3), random.standard_normal((60, pixels), np.float32)
        agrees(matmul(Weight.sparse(weight, height=4), x, pool=pool, variant=variant), weight, x, None, None, "none")
    pool.close()
    pool.close()
    if variant != "numba":
        with pytest.raises(kernels.KernelError, match="closed"):
            matmul(Weight.sparse(weight), x, pool=pool, variant=variant)


@pytest.mark.skipif(not kernels.status().library, reason="needs the C library")
def test_a_child_starts_threads_of_its_own(python: Any) -> None:
    done = python(
        """
import os, numpy as np
from coppice.kernels import Pool, Weight, matmul
pool, weight, x = Pool(2), Weight.sparse(np.eye(40, dtype=np.float32)), np.ones((40, 500), np.float32)
matmul(weight, x, pool=pool)
child = os.fork()
assert (matmul(weight, x, pool=pool) == 1).all()
if child:
    assert os.waitpid(child, 0)[1] == 0
    print("both")
os._exit(0) if not child else None
"""
    )
    assert done.stdout == "both\n", done.stderr


@pytest.mark.skipif(not kernels.status().library, reason="needs the C library")
def test_a_pool_has_threads() -> None:
    with pytest.raises(kernels.KernelError, match=r"not in 1 \.\. 256"):
        Pool(0)
    with pytest.raises(kernels.KernelError, match=r"not in 1 \.\. 256"):
        Pool(1000)


@pytest.mark.parametrize("stride", [16, 48, 64, 1024, 1040])
def test_whole_aligned_panels(variant: str, stride: int) -> None:
    """Where x may be read in place; a stride of 1024 floats would make all its rows share a few cache sets."""
    random = np.random.default_rng(stride)
    memory = np.zeros(64 * stride + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    x = memory[first : first + 64 * stride].reshape(64, stride)[:, :16]
    x[...] = random.standard_normal(x.shape)
    weight = sparse(random, 30, 64, 0.2)
    agrees(matmul(Weight.sparse(weight), x, variant=variant), weight, x, None, None, "none")


def test_rows_without_entries(variant: str) -> None:
    weight, x = np.zeros((4, 5), np.float32), np.ones((5, 33), np.float32)
    weight[2, 3] = 2
    bias = np.array([-1, 1, 0, 9], np.float32)
    y = matmul(Weight.sparse(weight), x, bias=bias, activation="relu6", variant=variant)
    assert np.array_equal(y, np.broadcast_to([[0], [1], [2], [6]], (4, 33)))


def test_special_values(variant: str) -> None:
    """NaN and infinity go where an entry takes them and nowhere else, through the activation too."""
    random = np.random.default_rng(5)
    weight, x = sparse(random, 40, 60, 0.2), random.standard_normal((60, 50), np.float32)
    x[3, 7], x[10, 7], x[20, 30], x[21, 49], x[22, 0] = np.nan, np.inf, np.inf, -np.inf, np.nan
    generic = matmul(Weight.sparse(weight), x, activation="relu6", variant=VARIANTS[0])
    got = matmul(Weight.sparse(weight), x, activation="relu6", variant=variant)
    expected_nan = np.zeros((40, 50), bool)
    for row in range(40):
        for pixel in range(50):
            entries = np.flatnonzero(weight[row])
            with np.errstate(invalid="ignore"):
                expected_nan[row, pixel] = np.isnan(np.sum(weight[row, entries] * x[entries, pixel]))
    assert np.array_equal(np.isnan(got), expected_nan)
    np.testing.assert_allclose(got, generic, rtol=0, atol=1e-4)


def test_explicit_zero_is_an_entry(variant: str) -> None:
    values = np.zeros((1, 1), np.float32)
    held = Weight(1, 2, 2, 1, "float32", values, np.array([0, 1], np.uint32), np.array([1], np.uint16))
    y = matmul(held, np.array([[np.inf], [np.inf]], np.float32), variant=variant)
    assert np.isnan(y[0, 0])


def test_torch_tensors_are_used_in_place(variant: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 30) * (torch.rand(20, 30) < 0.3)
    x, bias, out = torch.randn(30, 70)[:, 3:], torch.randn(20), torch.empty(20, 80)[:, 5:72]
    y = matmul(Weight.sparse(weight), x, out=out, bias=bias, activation="relu", variant=variant)
    assert y is out
    expected = torch.relu(weight.double() @ x.double() + bias[:, None])
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(matmul(Weight.sparse(weight), x, variant=variant), torch.Tensor)


def test_a_transposed_view_of_one_row_or_column(variant: str) -> None:
    """One pixel may be a slice of anything: its rows are one element long."""
    wide = np.random.default_rng(1).standard_normal((30, 7), np.float32)
    weight = sparse(np.random.default_rng(2), 8, 30, 0.5)
    agrees(matmul(Weight.sparse(weight), wide[:, 2:3], variant=variant), weight, wide[:, 2:3], None, None, "none")


GOOD = Weight.sparse(np.eye(3, 4, dtype=np.float32))
X = np.ones((4, 6), np.float32)
SHARED = np.ones(5, np.float32)


@pytest.mark.parametrize(
    ("place", "fact", "arguments"),
    [
        ("x", "list", {"x": [[1.0]]}),
        ("x", "float64", {"x": X.astype(np.float64)}),
        ("x", ">f4", {"x": X.astype(">f4")}),
        ("x", "1 dimensions", {"x": X[0]}),
        ("x", "ask for", {"x": X[:3]}),
        ("x", "strides", {"x": np.ones((6, 4), np.float32).T}),
        ("x", "strides", {"x": X[:, ::2]}),
        ("x", "strides", {"x": np.broadcast_to(np.float32(1), (4, 6))}),
        ("x", "strides", {"x": X[::-1]}),
        ("x", "strides", {"x": np.zeros(97, np.int8)[1:].view(np.float32).reshape(4, 6)}),
        ("x", "gradient", {"x": torch.ones(4, 6, requires_grad=True)}),
        ("x", "sparse_coo", {"x": torch.eye(4).to_sparse(layout=torch.sparse_coo)}),
        ("x", "meta", {"x": torch.ones(4, 6, device="meta")}),
        ("x", "float64", {"x": torch.ones(4, 6, dtype=torch.float64)}),
        ("out", "ask for", {"x": X, "out": np.empty((3, 5), np.float32)}),
        ("out", "read-only", {"x": X, "out": np.frombuffer(bytes(72), np.float32).reshape(3, 6)}),
        ("out", "overlaps x", {"x": X, "out": X[1:]}),
        ("out", "overlaps bias", {"x": X[:, :1], "bias": SHARED[:3], "out": SHARED[2:, None]}),
        ("bias", "ask for", {"x": X, "bias": np.ones(4, np.float32)}),
        ("bias", "strides", {"x": X, "bias": np.ones(6, np.float32)[::2]}),
        ("residual", "ask for", {"x": X, "residual": X}),
        ("activation", "there is no 'tanh'", {"x": X, "activation": "tanh"}),
        ("activation", "None is neither a name nor", {"x": X, "activation": None}),
        ("activation", "(1, 2, 3) is neither a name nor", {"x": X, "activation": (1, 2, 3)}),
        ("activation", "range", {"x": X, "activation": (1.0, 0.0)}),
        ("activation", "range", {"x": X, "activation": (0.0, float("nan"))}),
        ("arithmetic", "there is no 'float8'", {"x": X, "arithmetic": "float8"}),
        ("variant", "no variant", {"x": X, "variant": "sse9"}),
    ],
)
def test_refused(place: str, fact: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(kernels.KernelError) as caught:
        matmul(GOOD, **arguments)
    assert caught.value.place == place
    assert fact in caught.value.fact
    assert caught.value.remedy in str(caught.value)


def test_a_dense_weight_is_refused() -> None:
    """Building the sparse one at every call would cost more than the product."""
    with pytest.raises(kernels.KernelError, match="weight: it is a ndarray"):
        matmul(np.eye(4, dtype=np.float32), X)  # type: ignore[arg-type]


def test_residual_that_half_overlaps_out_is_refused() -> None:
    memory = np.zeros((3, 12), np.float32)
    with pytest.raises(kernels.KernelError, match="overlaps residual"):
        matmul(GOOD, X, out=memory[:, :6], residual=memory[:, 1:7])
    interleaved = matmul(GOOD, X, out=memory[:, :6], residual=memory[:, 6:])  # apart, though within the same rows
    assert np.array_equal(interleaved, np.eye(3, 4) @ X)


def test_gradients_may_be_switched_off() -> None:
    with torch.no_grad():
        y = matmul(GOOD, torch.ones(4, 6, requires_grad=True), bias=torch.nn.Parameter(torch.ones(3)))
    assert torch.equal(y, torch.full((3, 6), 2.0))
