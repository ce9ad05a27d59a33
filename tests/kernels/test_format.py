"""Weights as bytes: what comes back is what was written, and what nobody wrote is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from coppice.kernels import KernelError, Weight, matmul
from coppice.kernels._format import FORMAT

MATRIX = np.where(np.arange(60).reshape(6, 10) % 3 == 0, np.arange(60).reshape(6, 10) - 20.5, 0).astype(np.float32)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("height", [1, 4, None])
def test_a_weight_comes_back(kind: Any, height: int | None) -> None:
    weight = (
        Weight.dense(MATRIX, type=kind) if height is None else Weight.sparse(MATRIX, height=height, type=kind, slab=4)
    )
    again = Weight.from_bytes(weight.to_bytes())
    assert repr(again) == repr(weight)
    assert np.array_equal(again.to_dense(), weight.to_dense())
    for name in ("values", "starts", "columns", "scales"):
        one, other = getattr(weight, name), getattr(again, name)
        assert (one is None) == (other is None)
        assert one is None or (one.dtype == other.dtype and np.array_equal(one, other))
    x = np.ones((10, 5), np.float32)
    assert np.array_equal(matmul(again, x), matmul(weight, x))


def test_empty_weights_come_back() -> None:
    for shape in ((0, 5), (5, 0), (0, 0)):
        weight = Weight.sparse(np.zeros(shape, np.float32))
        assert Weight.from_bytes(weight.to_bytes()).to_dense().shape == shape


def facts(**changes: str) -> dict[str, str]:
    return {"format": FORMAT, "type": "float32", "rows": "1", "cols": "1", "slab": "1", "height": "1"} | changes


GOOD: dict[str, np.ndarray[Any, Any]] = {
    "values": np.ones((1, 1), np.float32),
    "starts": np.array([0, 1], np.uint32),
    "columns": np.zeros(1, np.uint16),
}


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"", "not a safetensors file"),
        (b"\x80\x04", "not a safetensors file"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        (save(GOOD), "its format is None"),
        (save(GOOD, facts(format="coppice.weight/2")), "coppice.weight/2"),
        (save(GOOD, facts(type="float64")), "metadata"),
        (save(GOOD, facts(rows="-1")), "metadata"),
        (save(GOOD, facts(rows="٣")), "metadata"),
        (save(GOOD, facts(rows="99999999999")), "metadata"),
        (save(GOOD, facts(rows="2")), "expected uint32 [3]"),
        (save(GOOD, facts(rows="9999999999")), "not in 0"),
        (save(GOOD, facts(height="4")), "expected float32 [n, 4]"),
        (save(GOOD, facts(type="float16")), "expected float16"),
        (save({"starts": GOOD["starts"]}, facts()), "tensors"),
        (save(GOOD | {"code": np.zeros(4, np.uint8)}, facts()), "tensors"),
        (save(GOOD | {"columns": np.ones(1, np.uint16)}, facts()), "outside its slab"),
        (save(GOOD | {"starts": np.array([0, 9], np.uint32)}, facts()), "not from 0 to 1"),
        (save({"values": GOOD["values"], "starts": GOOD["starts"]}, facts()), "without the other"),
    ],
)
def test_other_bytes_are_refused(data: bytes, fact: str) -> None:
    with pytest.raises(KernelError) as caught:
        Weight.from_bytes(data)
    assert fact in str(caught.value)
    assert caught.value.remedy


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever becomes of the bytes, a weight that is let through keeps all indices inside."""
    held = bytearray(Weight.sparse(MATRIX, height=4, slab=4, type="float16").to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        held[data.draw(st.integers(0, len(held) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(held)))
    try:
        weight = Weight.from_bytes(bytes(held[: cut or None]))
    except KernelError:
        return
    y = matmul(weight, np.ones((weight.cols, 3), np.float32))
    assert y.shape == (weight.rows, 3)
