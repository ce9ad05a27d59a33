"""Axes as products of factors: reshapes, parts and joins of labels against index arithmetic on whole arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, DrawFn

from coppice.core.labels import (
    FIXED,
    POISON,
    UNKNOWN,
    Axis,
    Factor,
    Flow,
    Ids,
    agree,
    axis_size,
    boundaries,
    forget,
    keep_zero,
    refinement,
    same,
)
from coppice.core.ops.joins import concatenate
from coppice.core.ops.parts import take
from coppice.core.ops.views import regroup
from coppice.core.solve import Bools, Solution, solve

SIZES = st.sampled_from([2, 3, 4, 6])


# ---- the reference: which positions leave, as one array --------------------------------------------------------------


def outcomes(flow: Flow) -> tuple[Solution, Bools]:
    """The solved facts, and a few sets of removed classes that satisfy them (none, each leaf alone, random ones)."""
    solution = solve(flow, [])
    leaves = np.flatnonzero((solution.leaves[:, 0] == np.arange(solution.size)) & ~solution.frozen)
    sets = np.concatenate([np.eye(solution.size, dtype=bool)[leaves], np.zeros((1, solution.size), bool)])
    some = np.zeros((12, solution.size), bool)
    some[:, leaves] = np.random.default_rng(0).random((12, len(leaves))) < 0.4
    return solution, solution.spread(np.concatenate([sets, some]))


def leaving(solution: Solution, gone: Bools, axis: Axis) -> Bools:
    """bool[sets, positions]: a position of a product leaves when any of its coordinates does."""
    total = np.zeros((len(gone), 1), bool)
    for factor in axis:
        own = np.zeros((len(gone), factor.size), bool)
        if factor.ids is not None:
            own = gone[:, solution.class_of[factor.ids]]
        total = (total[:, :, None] | own[:, None, :]).reshape(len(gone), total.shape[1] * factor.size)
    return total


def ids_of(factor: Factor) -> Ids:
    assert factor.ids is not None
    return factor.ids


@st.composite
def axes(draw: DrawFn, flow: Flow) -> Axis:
    """One to three factors: new units, free positions, or units that are repeated or tiled."""
    factors: list[Factor] = []
    for _ in range(draw(st.integers(1, 3))):
        size, kind = draw(SIZES), draw(st.sampled_from(["units", "units", "free", "repeated", "tiled"]))
        own = flow.fresh(size)
        copies = {"repeated": np.repeat(ids_of(own), 2), "tiled": np.tile(ids_of(own), 2)}
        if kind == "free":
            own = Factor(size)
        elif kind != "units":
            own = Factor(2 * size, copies[kind], np.full(2 * size, UNKNOWN))
        factors.append(own)
    return tuple(factors)


@st.composite
def shapes(draw: DrawFn, total: int) -> list[int]:
    """A row-major shape of ``total`` positions."""
    result: list[int] = []
    while total > 1:
        part = draw(st.sampled_from([n for n in range(2, total + 1) if total % n == 0]))
        result.append(part)
        total //= part
    return result or [1]


# ---- reshapes --------------------------------------------------------------------------------------------------------


@given(st.data())
def test_reshapes_move_no_unit(data: DataObject) -> None:
    """Through two reshapes in a row, the same elements of the array leave."""
    flow = Flow()
    before = data.draw(axes(flow))
    total = axis_size(before)
    once = regroup(flow, [before], data.draw(shapes(total)))
    twice = regroup(flow, once, data.draw(shapes(total)))
    solution, gone = outcomes(flow)
    expected = leaving(solution, gone, before)
    for view in (once, twice):
        assert (leaving(solution, gone, tuple(f for axis in view for f in axis)) == expected).all()


@given(st.data())
def test_reshapes_of_several_axes_move_no_unit(data: DataObject) -> None:
    flow = Flow()
    before = [data.draw(axes(flow)) for _ in range(2)]
    shape = data.draw(shapes(math.prod(map(axis_size, before))))
    after = regroup(flow, before, shape)
    assert [axis_size(axis) for axis in after] == shape
    solution, gone = outcomes(flow)
    expected = leaving(solution, gone, (*before[0], *before[1]))
    assert (leaving(solution, gone, tuple(f for axis in after for f in axis)) == expected).all()


@given(st.data())
def test_split_and_merge_are_inverse(data: DataObject) -> None:
    flow = Flow()
    whole = flow.merge(data.draw(axes(flow)))
    sizes = data.draw(shapes(whole.size))
    parts = flow.split(whole, sizes)
    assert [part.size for part in parts] == sizes
    again = flow.merge(tuple(parts))
    assert again.size == whole.size
    solution, gone = outcomes(flow)
    expected = leaving(solution, gone, (whole,))
    assert (leaving(solution, gone, tuple(parts)) == expected).all()
    assert (leaving(solution, gone, (again,)) == expected).all()


@given(st.data())
def test_aligned_axes_have_the_same_factors(data: DataObject) -> None:
    flow = Flow()
    one = data.draw(axes(flow))
    other = (flow.fresh(axis_size(one)),)
    aligned = flow.align([one, other])
    assert [f.size for f in aligned[0]] == [f.size for f in aligned[1]]
    solution, gone = outcomes(flow)
    for axis, factors in zip((one, other), aligned, strict=True):
        assert (leaving(solution, gone, tuple(factors)) == leaving(solution, gone, axis)).all()


@given(st.data())
def test_tied_axes_lose_the_same_positions(data: DataObject) -> None:
    """And where one of them is free, the other loses none."""
    flow = Flow()
    one = data.draw(axes(flow))
    other = data.draw(st.sampled_from([(flow.fresh(axis_size(one)),), (Factor(axis_size(one)),)]))
    tied = flow.tie([one, other])
    result = tuple(t.factor(agree) for t in tied)
    solution, gone = outcomes(flow)
    expected = leaving(solution, gone, one)
    assert (leaving(solution, gone, other) == expected).all()
    assert (leaving(solution, gone, result) == expected).all()


# ---- parts and joins -------------------------------------------------------------------------------------------------


@given(st.data())
def test_take_is_indexing(data: DataObject) -> None:
    flow = Flow()
    axis = data.draw(axes(flow))
    size = axis_size(axis)
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    order = data.draw(st.sampled_from(["forward", "backward", "rolled"]))
    positions = np.arange(start, end)
    positions = {"forward": positions, "backward": positions[::-1], "rolled": np.roll(positions, 2)}[order]
    taken = take(flow, axis, positions)
    assert axis_size(taken) == len(positions)
    solution, gone = outcomes(flow)
    expected = leaving(solution, gone, axis)[:, positions]
    if len(positions) > 1:
        assert (leaving(solution, gone, taken) == expected).all()
    else:
        assert not expected.any(), "a position that is taken on its own stays"


@given(st.data())
def test_concatenate_is_concatenation(data: DataObject) -> None:
    flow = Flow()
    parts = [data.draw(axes(flow)) for _ in range(data.draw(st.integers(1, 3)))]
    parts.append(parts[0])
    joined = concatenate(flow, parts)
    assert axis_size(joined) == sum(map(axis_size, parts))
    solution, gone = outcomes(flow)
    expected = np.concatenate([leaving(solution, gone, part) for part in parts], axis=1)
    assert (leaving(solution, gone, joined) == expected).all()


@given(st.data())
def test_what_is_joined_can_be_taken_apart(data: DataObject) -> None:
    flow = Flow()
    one, two = data.draw(axes(flow)), data.draw(axes(flow))
    joined = concatenate(flow, [one, two])
    first, size = axis_size(one), axis_size(joined)
    back = take(flow, joined, np.arange(first)), take(flow, joined, np.arange(first, size))
    solution, gone = outcomes(flow)
    for axis, part in zip((one, two), back, strict=True):
        assert (leaving(solution, gone, part) == leaving(solution, gone, axis)).all()


# ---- refinements -----------------------------------------------------------------------------------------------------


@given(st.data())
def test_refinement_is_the_coarsest_common_one(data: DataObject) -> None:
    total = data.draw(st.sampled_from([12, 16, 24, 36]))
    one, two = data.draw(shapes(total)), data.draw(shapes(total))
    fine = refinement(one, two)
    both = sorted(boundaries(one) | boundaries(two))
    nests = all(big % small == 0 for small, big in zip(both, both[1:], strict=False))
    if fine is None:
        assert not nests
        return
    assert nests
    assert math.prod(fine) == total
    assert boundaries(fine) == set(both)


def test_refinement_of_known_shapes() -> None:
    assert refinement([3, 4], [6, 2]) == [3, 2, 2]
    assert refinement([12], [3, 4]) == [3, 4]
    assert refinement([3, 4], [4, 3]) is None
    assert refinement([1, 12], [12]) == [12]


# ---- what a removed position carries ---------------------------------------------------------------------------------


def carried(flow: Flow, *carries: list[float]) -> Axis:
    made = [flow.fresh(len(values)) for values in carries]
    return tuple(Factor(f.size, f.ids, np.array(values)) for f, values in zip(made, carries, strict=True))


def equal(carry: object, expected: list[float]) -> bool:
    return bool(np.array_equal(np.asarray(carry), np.array(expected), equal_nan=True))


def test_a_product_carries_what_its_coordinates_agree_on() -> None:
    flow = Flow()
    merged = flow.merge(carried(flow, [0.0, 1.0], [0.0, 1.0, POISON]))
    assert equal(merged.carry, [0.0, UNKNOWN, POISON, UNKNOWN, 1.0, POISON])


def test_a_coordinate_carries_what_its_positions_agree_on() -> None:
    flow = Flow()
    (whole,) = carried(flow, [0.0, 0.0, 0.5, 0.0, POISON, 0.0])
    rows, columns = flow.split(whole, [2, 3])
    assert equal(rows.carry, [UNKNOWN, POISON])
    assert equal(columns.carry, [0.0, POISON, UNKNOWN])


def test_carries_are_combined_carefully() -> None:
    stack = np.array([[0.0, 1.0, UNKNOWN, POISON], [0.0, 2.0, UNKNOWN, 0.0]])
    assert equal(agree(stack), [0.0, UNKNOWN, UNKNOWN, POISON])
    assert same([2.0, 2.0]) == 2.0
    assert math.isnan(same([2.0, 3.0]))
    assert math.isnan(same([UNKNOWN, UNKNOWN]))
    assert same([2.0, POISON]) == POISON
    axis = carried(Flow(), [0.0, 1.0, UNKNOWN, POISON])
    assert equal(keep_zero(axis)[0].carry, [0.0, UNKNOWN, UNKNOWN, POISON])
    assert equal(forget(axis)[0].carry, [UNKNOWN, UNKNOWN, UNKNOWN, POISON])


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_the_same_split_makes_the_same_variables() -> None:
    """So that a view taken twice does not look like two reshapes."""
    flow = Flow()
    axis = flow.fresh(12)
    first, second = flow.split(axis, [3, 4]), flow.split(axis, [3, 4])
    assert all(a.ids is b.ids for a, b in zip(first, second, strict=True))
    assert len(flow.grids) == 1
    assert np.array_equal(ids_of(flow.merge(tuple(first))), ids_of(axis))


def test_repeated_units_need_no_new_variables() -> None:
    flow = Flow()
    axis = flow.fresh(4)
    repeated = Factor(12, np.repeat(ids_of(axis), 3), np.full(12, UNKNOWN))
    outer, inner = flow.split(repeated, [4, 3])
    assert np.array_equal(ids_of(outer), ids_of(axis))
    assert inner.ids is None
    assert not flow.grids


@pytest.mark.parametrize("count", [1, 3])
def test_a_fixed_position_freezes_what_it_meets(count: int) -> None:
    flow = Flow()
    a = ids_of(flow.fresh(4))
    flow.union(a, np.concatenate([np.full(count, FIXED), ids_of(flow.fresh(4 - count))]))
    solution = solve(flow, [])
    assert solution.frozen[solution.class_of[a]].tolist() == [True] * count + [False] * (4 - count)
