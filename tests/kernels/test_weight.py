"""The weight format: every source gives the same matrix; what contradicts itself is refused by Python and C alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coppice.kernels import KernelError, Weight, _load
from coppice.kernels._bands import fast_slab
from coppice.kernels._convert import to_scipy, to_torch

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(0, 80),
    st.floats(0, 1),
    st.sampled_from([None, 1, 3, 64, 65536]),
    st.sampled_from([1, 4, 8, 16]),
    st.integers(0, 2**32 - 1),
)
def test_all_sources_agree(rows: int, cols: int, density: float, slab: int | None, height: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    kept = random.random((rows, cols)) < density
    dense = np.where(kept, random.standard_normal((rows, cols)), 0).astype(np.float32)
    sources = [dense, np.asfortranarray(dense), torch.from_numpy(dense), scipy.sparse.coo_matrix(dense)]
    if rows and cols:  # torch makes no empty sparse tensors
        sources.append(torch.from_numpy(dense).to_sparse_csr())
        high, wide = (n if rows % n == 0 and cols % n == 0 else 1 for n in (4, 2))
        sources.append(torch.from_numpy(dense).to_sparse_bsr((high, wide)))
    bands = -(-rows // height)
    padded = np.zeros((bands * height, cols), np.float32)
    padded[:rows] = dense
    entries = int((padded.reshape(bands, height, cols) != 0).any(axis=1).sum())
    for source in sources:
        weight = Weight.sparse(source, slab=slab, height=height)
        assert np.array_equal(weight.to_dense(), dense)
        assert weight.entries == entries
        assert weight.nbytes == 4 * (weight.slabs * bands + 1) + (2 + 4 * height) * entries
        assert np.array_equal(to_scipy(weight).toarray(), dense)
        if height > 1:
            whole = Weight.dense(source, slab=slab, height=height)
            assert np.array_equal(whole.to_dense(), dense)
            assert whole.entries == bands * cols
            assert whole.nbytes == whole.values.nbytes


@pytest.mark.parametrize(("kind", "unit"), [("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_narrow_types_are_the_nearest(kind: Any, unit: float) -> None:
    dense = np.random.default_rng(0).standard_normal((9, 33)).astype(np.float32)
    for weight in (Weight.sparse(dense, type=kind), Weight.dense(dense, type=kind)):
        assert np.all(np.abs(weight.to_dense() - dense) <= unit * np.abs(dense))
    expected = torch.from_numpy(dense).to(getattr(torch, kind)).float().numpy()
    assert np.array_equal(Weight.sparse(dense, type=kind, height=4).to_dense(), expected)


def test_int8_has_a_scale_for_each_row() -> None:
    dense = np.random.default_rng(0).standard_normal((9, 33)).astype(np.float32)
    dense[3] = 0
    for weight in (Weight.sparse(dense, type="int8"), Weight.dense(dense, type="int8", height=4, slab=7)):
        assert weight.scales is not None
        assert np.allclose(weight.scales[dense.any(axis=1)], np.abs(dense).max(axis=1)[dense.any(axis=1)] / 127)
        assert np.all(np.abs(weight.to_dense() - dense) <= weight.scales[:, None] / 2 * (1 + 1e-5))
    dense[0, 0] = np.nan
    with pytest.raises(KernelError, match="no NaN"):
        Weight.sparse(dense, type="int8")


def test_torch_and_scipy_get_their_matrices_back() -> None:
    dense = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    weight = Weight.sparse(dense, height=4)
    assert np.array_equal(to_torch(weight).to_dense().numpy(), dense)
    assert to_scipy(weight).has_canonical_format


def test_explicit_zeros_stay_and_duplicates_add_up() -> None:
    coo = scipy.sparse.coo_matrix((np.array([1, 2, 0], np.float32), ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    weight = Weight.sparse(coo)
    assert weight.entries == 2
    assert weight.to_dense().tolist() == [[0, 3], [0, 0]]


def test_it_is_immutable_and_keeps_nothing_of_its_sources() -> None:
    values = np.ones((1, 1), np.float32)
    weight = Weight(1, 1, 1, 1, "float32", values, np.array([0, 1], np.uint32), np.zeros(1, np.uint16))
    values[0] = 5
    assert weight.values.tolist() == [[1]]
    with pytest.raises(ValueError, match="read-only"):
        weight.values[0] = 2
    with pytest.raises(AttributeError):
        weight.rows = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("weight", "fact"),
    [
        (lambda: np.ones((2, 2)), "float64"),
        (lambda: np.ones((2, 2), np.float16), "float16"),
        (lambda: np.ones(2, np.float32), "1 dimensions"),
        (lambda: np.ones((2, 2, 1, 1), np.float32), "4 dimensions"),
        (lambda: [[1.0]], "list"),
        (lambda: torch.ones(2, 2, device="meta"), "meta"),
        (lambda: torch.eye(2).to_sparse(layout=torch.sparse_coo), "sparse_coo"),
        (lambda: torch.eye(2, dtype=torch.float64).to_sparse_csr(), "float64"),
        (lambda: scipy.sparse.eye(2, format="csr"), "float64"),
    ],
)
def test_other_weights_are_refused(weight: Callable[[], object], fact: str) -> None:
    with pytest.raises(KernelError) as caught:
        Weight.sparse(weight())
    assert caught.value.place == "weight"
    assert fact in caught.value.fact


@pytest.mark.parametrize("slab", [0, -1, 65537])
def test_slab_out_of_range(slab: int) -> None:
    with pytest.raises(KernelError, match="slab"):
        Weight.sparse(np.eye(2, dtype=np.float32), slab=slab)


def test_heights_and_types_out_of_range() -> None:
    with pytest.raises(KernelError, match="height: 2"):
        Weight.sparse(np.eye(2, dtype=np.float32), height=2)
    with pytest.raises(KernelError, match="height: 1"):
        Weight.dense(np.eye(2, dtype=np.float32), height=1)
    with pytest.raises(KernelError, match="type: there is no 'int4'"):
        Weight.sparse(np.eye(2, dtype=np.float32), type="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("rows", {"rows": -1}),
        ("rows", {"rows": 2**31}),
        ("cols", {"cols": -1}),
        ("slab", {"slab": 0}),
        ("slab", {"slab": 65537}),
        ("starts", {"starts": [0, 1, 3, 3]}),
        ("starts", {"starts": [1, 1, 3, 3, 4]}),
        ("starts", {"starts": [0, 1, 3, 3, 5]}),
        ("starts", {"starts": [0, 3, 1, 3, 4]}),
        ("columns", {"columns": [2, 0, 1]}),
        ("columns", {"columns": [3, 0, 1, 1]}),
        ("columns", {"columns": [2, 0, 1, 2]}),
        ("columns", {"columns": [2, 1, 1, 1]}),
        ("columns", {"columns": [2, 1, 0, 1]}),
        ("values", {"values": np.ones((4, 1))}),
        ("values", {"values": np.ones(4, np.float32)}),
        ("values", {"values": np.ones((4, 2), np.float32)}),
        ("height", {"height": 2}),
        ("height", {"type": "int4"}),
        ("scales", {"scales": np.ones(3, np.float32)}),
        ("starts and Weight.columns", {"columns": None}),
    ],
)
def test_contradictions(field: str, change: dict[str, object]) -> None:
    good = {"rows": 2, "cols": 5, "slab": 3, "starts": [0, 1, 3, 3, 4], "columns": [2, 0, 1, 1]}
    arguments = good | {"values": np.ones((4, 1), np.float32), "height": 1, "type": "float32"} | change
    for name, dtype in (("starts", np.uint32), ("columns", np.uint16)):
        arguments[name] = None if arguments[name] is None else np.array(arguments[name], dtype)
    with pytest.raises(KernelError) as caught:
        Weight(**arguments)  # type: ignore[arg-type]
    assert caught.value.place == f"Weight.{field}"


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(0, 3),
    cols=st.integers(0, 6),
    slab=st.integers(1, 4),
    height=st.sampled_from([1, 4]),
    starts=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    columns=st.lists(st.integers(0, 4), max_size=5),
)
def test_python_and_c_refuse_the_same(
    rows: int, cols: int, slab: int, height: int, starts: list[int], columns: list[int]
) -> None:
    lists = max(1, -(-cols // slab)) * -(-rows // height)
    starts = (starts * (lists + 1))[: lists + 1]  # C is told no length of starts
    library = _load.load()
    buffers = [
        library.ffi.new("uint32_t[]", starts),
        library.ffi.new("uint16_t[]", [*columns, 0]),
        library.ffi.new("float[]", height * len(columns) + 1),
    ]
    weight = library.ffi.new("coppice_weight *")
    weight.layout, weight.rows, weight.cols, weight.slab, weight.entries = 1, rows, cols, slab, len(columns)
    weight.height = height
    weight.starts, weight.columns, weight.values = buffers
    accepted_by_c = library.c.coppice_weight_validate(weight) == library.c.COPPICE_OK
    arrays = np.array(starts, np.uint32), np.array(columns, np.uint16), np.ones((len(columns), height), np.float32)
    try:
        Weight(rows, cols, slab, height, "float32", arrays[2], arrays[0], arrays[1])
        accepted_by_python = True
    except KernelError:
        accepted_by_python = False
    assert accepted_by_python == accepted_by_c


def test_fast_slab() -> None:
    assert fast_slab(0, 0.0) == 1
    assert fast_slab(256, 0.5) == 128
    assert fast_slab(768, 0.5, height=4) == 768
    assert fast_slab(3072, 0.5, height=4) == 1024
    assert fast_slab(256, 0.1) == 128
    assert fast_slab(768, 0.1) == 192
    assert fast_slab(1024, 0.02) == 512
    assert fast_slab(1 << 20, 0.0) == 65536
    assert fast_slab(2048, 0.1, pixels=1) == 2048
    assert fast_slab(1024, 0.1, pixels=16) == 512
    assert fast_slab(1024, 0.1, pixels=49) == 205
    assert fast_slab(1024, 0.1, pixels=10_000) == fast_slab(1024, 0.1)
    assert Weight.sparse(np.eye(512, dtype=np.float32), pixels=1).slabs == 1
