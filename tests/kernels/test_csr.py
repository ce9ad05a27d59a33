"""The weight format: every source gives the same matrix; what contradicts itself is refused by Python and C alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coppice.kernels import CSR, KernelError, _load
from coppice.kernels._csr import fast_slab

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 30),
    st.integers(0, 80),
    st.floats(0, 1),
    st.sampled_from([None, 1, 3, 64, 65536]),
    st.integers(0, 2**32 - 1),
)
def test_all_sources_agree(rows: int, cols: int, density: float, slab: int | None, seed: int) -> None:
    random = np.random.default_rng(seed)
    kept = random.random((rows, cols)) < density
    dense = np.where(kept, random.standard_normal((rows, cols)), 0).astype(np.float32)
    sources = [dense, np.asfortranarray(dense), torch.from_numpy(dense), scipy.sparse.coo_matrix(dense)]
    if rows and cols:  # torch makes no empty sparse_csr tensor
        sources.append(torch.from_numpy(dense).to_sparse_csr())
    for source in sources:
        csr = CSR.of(source, slab)
        assert np.array_equal(csr.to_dense(), dense)
        assert csr.entries == np.count_nonzero(dense)
        assert csr.nbytes == 4 * (csr.slabs * rows + 1) + 6 * csr.entries


def test_explicit_zeros_stay_and_duplicates_add_up() -> None:
    coo = scipy.sparse.coo_matrix((np.array([1, 2, 0], np.float32), ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    csr = CSR.of(coo)
    assert csr.entries == 2
    assert csr.to_dense().tolist() == [[0, 3], [0, 0]]


def test_it_is_immutable_and_keeps_nothing_of_its_sources() -> None:
    values = np.ones(1, np.float32)
    csr = CSR(1, 1, 1, np.array([0, 1], np.uint32), np.zeros(1, np.uint16), values)
    values[0] = 5
    assert csr.values.tolist() == [1]
    with pytest.raises(ValueError, match="read-only"):
        csr.values[0] = 2
    with pytest.raises(AttributeError):
        csr.rows = 2  # type: ignore[misc]


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
        CSR.of(weight())
    assert caught.value.place == "weight"
    assert fact in caught.value.fact


@pytest.mark.parametrize("slab", [0, -1, 65537])
def test_slab_out_of_range(slab: int) -> None:
    with pytest.raises(KernelError, match="slab"):
        CSR.of(np.eye(2, dtype=np.float32), slab)


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
        ("values", {"values": np.ones(4)}),
        ("values", {"values": np.ones((2, 2), np.float32)}),
    ],
)
def test_contradictions(field: str, change: dict[str, object]) -> None:
    good = {"rows": 2, "cols": 5, "slab": 3, "starts": [0, 1, 3, 3, 4], "columns": [2, 0, 1, 1]}
    arguments = good | {"values": np.ones(4, np.float32)} | change
    arguments["starts"] = np.array(arguments["starts"], np.uint32)
    arguments["columns"] = np.array(arguments["columns"], np.uint16)
    with pytest.raises(KernelError) as caught:
        CSR(**arguments)  # type: ignore[arg-type]
    assert caught.value.place == f"CSR.{field}"


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(0, 3),
    cols=st.integers(0, 6),
    slab=st.integers(1, 4),
    starts=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    columns=st.lists(st.integers(0, 4), max_size=5),
)
def test_python_and_c_refuse_the_same(rows: int, cols: int, slab: int, starts: list[int], columns: list[int]) -> None:
    slabs = max(1, -(-cols // slab))
    starts = (starts * (slabs * rows + 1))[: slabs * rows + 1]  # C is told no length of starts
    library = _load.load()
    buffers = [
        library.ffi.new("uint32_t[]", starts),
        library.ffi.new("uint16_t[]", [*columns, 0]),
        library.ffi.new("float[]", len(columns) + 1),
    ]
    weight = library.ffi.new("coppice_csr_f32 *")
    weight.layout, weight.rows, weight.cols, weight.slab, weight.entries = 1, rows, cols, slab, len(columns)
    weight.starts, weight.columns, weight.values = buffers
    accepted_by_c = library.c.coppice_csr_validate(weight) == library.c.COPPICE_OK
    arrays = np.array(starts, np.uint32), np.array(columns, np.uint16), np.ones(len(columns), np.float32)
    try:
        CSR(rows, cols, slab, *arrays)
        accepted_by_python = True
    except KernelError:
        accepted_by_python = False
    assert accepted_by_python == accepted_by_c


def test_fast_slab() -> None:
    assert fast_slab(0, 0.0) == 1
    assert fast_slab(256, 0.1) == 128
    assert fast_slab(768, 0.1) == 192
    assert fast_slab(1024, 0.02) == 512
    assert fast_slab(1 << 20, 0.0) == 65536
    assert fast_slab(2048, 0.1, pixels=1) == 2048
    assert fast_slab(1024, 0.1, pixels=16) == 512
    assert fast_slab(1024, 0.1, pixels=49) == 205
    assert fast_slab(1024, 0.1, pixels=10_000) == fast_slab(1024, 0.1)
    assert CSR.of(np.eye(512, dtype=np.float32), pixels=1).slabs == 1
