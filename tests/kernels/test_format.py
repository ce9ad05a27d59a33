"""Weights as bytes: what comes back is what was written, and what nobody wrote is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from coppice.kernels import KernelError, Weight, matmul
from coppice.kernels._format import ARRAYS, FORMAT
from coppice.kernels._weight import Type
from kernelkit import available

MATRIX = np.where(np.arange(60).reshape(6, 10) % 3 == 0, np.arange(60).reshape(6, 10) - 20.5, 0).astype(np.float32)


def expect_same(one: Weight, other: Weight) -> None:
    assert repr(one) == repr(other)
    for name in ARRAYS:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and a.tobytes() == b.tobytes())


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("height", [1, 4, None])
def test_a_weight_comes_back(kind: Any, height: int | None) -> None:
    weight = (
        Weight.dense(MATRIX, type=kind) if height is None else Weight.sparse(MATRIX, height=height, type=kind, slab=4)
    )
    again = Weight.from_bytes(weight.to_bytes())
    expect_same(again, weight)
    assert np.array_equal(again.to_dense(), weight.to_dense())
    x = np.ones((10, 5), np.float32)
    assert np.array_equal(matmul(again, x), matmul(weight, x))


def test_the_same_weight_is_the_same_bytes() -> None:
    """Whoever stores weights by their content would find others each time."""
    assert len({Weight.sparse(MATRIX).to_bytes() for _ in range(20)}) == 1


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


KINDS: tuple[Type, ...] = ("float32", "float16", "bfloat16", "int8")
WEIGHTS = [
    Weight.sparse(MATRIX, height=height, type=kind, slab=slab)
    for kind in KINDS
    for height in (1, 4)
    for slab in (4, 64)
] + [Weight.dense(MATRIX, height=4, slab=4), Weight.dense(MATRIX, type="int8"), Weight.sparse(MATRIX[:, :0])]
WEIGHTS += [Weight.sell(MATRIX), Weight.sell(np.tri(70, 300, dtype=np.float32))]
WEIGHTS += [Weight.bitmask(MATRIX, type=kind) for kind in KINDS]
WEIGHTS += [Weight.n_of_m(MATRIX[:, :8], n, 4, type=kind) for kind in KINDS for n in (2, 3)]
CHANGES = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 16, 40, 63, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31]


def expect_refused_or_harmless(data: bytes) -> None:
    """A weight that is let through keeps all indices inside, in C as in Python, and is written as it was read."""
    try:
        weight = Weight.from_bytes(data)
    except KernelError:
        return
    expect_same(Weight.from_bytes(weight.to_bytes()), weight)
    if max(weight.rows, weight.cols) > 1 << 16:  # of which the other is zero: nothing to multiply, but much to allocate
        return
    x = np.ones((weight.cols, 3), np.float32)
    with np.errstate(all="ignore"):
        expected = weight.to_dense() @ x
        tame = np.abs(weight.to_dense()).astype(np.float64) @ x < 1e30  # neither NaN nor about to overflow
    off = 1e-3 * np.max(np.abs(expected[tame]), initial=1)
    for variant in available("matmul"):
        np.testing.assert_allclose(matmul(weight, x, variant=variant)[tame], expected[tame], rtol=1e-3, atol=off)


@settings(max_examples=4 * settings().max_examples)
@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    held = bytearray(data.draw(st.sampled_from(WEIGHTS)).to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        held[data.draw(st.integers(0, len(held) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(held)))
    expect_refused_or_harmless(bytes(held[: cut or None]))


@settings(max_examples=4 * settings().max_examples)
@given(st.data())
def test_other_facts_are_refused_or_harmless(data: st.DataObject) -> None:
    """A sound file that says something else than was written: sizes, types, arrays, or single elements."""
    whole = data.draw(st.sampled_from(WEIGHTS)).to_bytes()
    arrays = load(whole)
    stated = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(stated) + sorted(arrays)))
        if name in stated:
            number = st.sampled_from(CHANGES).map(str)
            stated[name] = data.draw(number | st.sampled_from(["float16", "int8", FORMAT]) | st.text(max_size=12))
            continue
        array = arrays[name].copy()
        kind = data.draw(st.sampled_from(["element", "element", "shape", "type", "missing"]))
        if kind == "element" and array.size:
            bits = array.reshape(-1).view(f"u{array.itemsize}")
            place = data.draw(st.integers(0, array.size - 1))
            bits[place] = data.draw(st.sampled_from(CHANGES) | st.integers(0, 2**32)) % 2 ** (8 * array.itemsize)
        elif kind == "shape":
            array = array.reshape(-1)[: data.draw(st.integers(0, array.size))]
            array = array.reshape(-1, 1) if data.draw(st.booleans()) else array
        elif kind == "type":
            array = array.astype(data.draw(st.sampled_from(["f4", "f2", "u4", "u2", "i1", "f8", "i8"])))
        else:
            del arrays[name]
            continue
        arrays[name] = array
    expect_refused_or_harmless(save(arrays, stated))


def test_a_weight_without_entries_costs_nothing() -> None:
    """Though its header, of a few bytes, speaks of two thousand million columns."""
    stated = facts(cols=str(2**31 - 1), rows="0", height="4")
    weight = Weight.from_bytes(save({"values": np.zeros((0, 4), np.float32)}, stated))
    assert weight.slabs == weight.cols == 2**31 - 1
    assert weight.places()[0].size == 0


def test_a_pattern_without_entries_costs_nothing() -> None:
    """Neither where it has no rows nor where it has no columns."""
    for rows, cols in ((0, 1 << 30), (2**31 - 1, 0)):
        shape = (-(-rows // 16), cols // 16, 16)  # 2 of 4: eight positions in a word
        arrays = {"values": np.zeros((0, 16), np.float32), "positions": np.zeros(shape, np.uint32)}
        stated = facts(rows=str(rows), cols=str(cols), slab="0", height="16", kept="2", group="4")
        weight = Weight.from_bytes(save(arrays, stated))
        assert (weight.rows, weight.cols, weight.entries) == (rows, cols, 0)
        assert weight.places()[0].size == 0
