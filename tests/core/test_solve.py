"""The solver against brute force: whatever leaves after it has settled the facts, satisfies every one of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, DrawFn

from coppice.core.labels import FIXED, Axis, Flow, Grid, Ids, Reason, axis_size
from coppice.core.ops.joins import concatenate
from coppice.core.ops.parts import take
from coppice.core.ops.views import regroup
from coppice.core.solve import EMPTY, NESTED, Bools, Solution, solve

WHY = Reason("must stay for the test")


# ---- the reference --------------------------------------------------------------------------------------------------


def holds(flow: Flow, removed: Bools) -> Bools:
    """bool[n]: which of n assignments ``removed`` (bool[n, variables]) satisfy every fact of ``flow``."""
    good = ~removed[:, FIXED]
    for a, b in flow.edges:
        good &= (removed[:, a] == removed[:, b]).all(axis=1)
    for ids, _ in flow.freezes:
        good &= ~removed[:, ids].any(axis=1)
    for grid in flow.grids:
        for position, at in enumerate(itertools.product(*map(range, grid.shape))):
            any_part = np.any([removed[:, part[k]] for part, k in zip(grid.parts, at, strict=True)], axis=0)
            good &= removed[:, grid.flat[position]] == any_part
    return good


def free_leaves(solution: Solution) -> Ids:
    """The classes that are units of their own."""
    table = solution.leaves
    own = np.arange(solution.size)[:, None]
    leaves = ((table == own) | (table == -1)).all(axis=1) & (table == own).any(axis=1)
    return np.flatnonzero(leaves & ~solution.frozen).astype(np.int64)


def subsets(solution: Solution, leaves: Ids) -> Bools:
    """bool[n, classes]: every set of leaves for few of them; else all single ones, all pairs, and random sets."""
    count = len(leaves)
    if count <= 10:
        choice = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    else:
        single = np.eye(count, dtype=np.int64)
        pairs = [single[i] | single[j] for i, j in itertools.combinations(range(count), 2)]
        choice = np.concatenate([single, pairs, np.random.default_rng(0).integers(0, 2, (64, count))])
    removed = np.zeros((len(choice), solution.size), bool)
    removed[:, leaves] = choice.astype(bool)
    return removed


def check(flow: Flow, axes: Sequence[Ids] = ()) -> Solution:
    """Solve, and hold the solution against every fact; returns it."""
    edges, freezes, grids = list(flow.edges), list(flow.freezes), list(flow.grids)
    solution = solve(flow, list(axes))
    assert (flow.edges, flow.freezes, flow.grids) == (edges, freezes, grids), "the flow was changed"
    leaves = free_leaves(solution)
    removed = solution.spread(subsets(solution, leaves))
    assert not removed[:, solution.frozen].any(), "a frozen class left"
    variables = removed[:, solution.class_of[: flow.count]]
    assert holds(flow, variables).all()
    for klass in np.flatnonzero(solution.frozen):
        assert solution.why(int(klass)).text
        assert solution.reason[klass] >= 0
    single = np.zeros((len(leaves), solution.size), bool)
    single[np.arange(len(leaves)), leaves] = True
    alone = solution.spread(single)
    for ids in axes:
        assert not alone[:, solution.class_of[ids]].all(axis=1).any(), "one unit empties an axis"
    return solution


def units(flow: Flow, axes: Sequence[Ids] = ()) -> int:
    """How many units the solver finds."""
    return len(free_leaves(check(flow, axes)))


def ids(axis: Axis) -> Ids:
    assert len(axis) == 1
    assert axis[0].ids is not None
    return axis[0].ids


# ---- any facts ------------------------------------------------------------------------------------------------------


@st.composite
def any_facts(draw: DrawFn) -> Flow:
    """Facts about up to 12 variables that no walk needs to have made."""
    count = draw(st.integers(2, 12))
    variable = st.integers(0, count - 1)
    flow = Flow(count=count)

    def some(size: int) -> Ids:
        return np.array(draw(st.lists(variable, min_size=size, max_size=size)), dtype=np.int64)

    for _ in range(draw(st.integers(0, 4))):
        flow.edges.append((some(1), some(1)))
    for _ in range(draw(st.integers(0, 2))):
        flow.freezes.append((some(1), WHY))
    for _ in range(draw(st.integers(0, 3))):
        shape = draw(st.sampled_from([(2, 2), (2, 3), (3, 2), (2, 2, 2), (1, 3), (4, 2)]))
        flow.grids.append(Grid(some(int(np.prod(shape))), tuple(some(size) for size in shape)))
    return flow


@given(any_facts(), st.data())
def test_any_facts_are_satisfied_by_any_units_leaving(flow: Flow, data: DataObject) -> None:
    axis = data.draw(st.lists(st.integers(1, flow.count - 1), min_size=1, max_size=5))
    check(flow, [np.array(axis, dtype=np.int64)])


@given(any_facts())
def test_without_grids_nothing_is_frozen_that_need_not_be(flow: Flow) -> None:
    flow.grids.clear()
    solution = check(flow)
    assignments = ((np.arange(2**flow.count)[:, None] >> np.arange(flow.count)) & 1).astype(bool)
    possible = assignments[holds(flow, assignments)].any(axis=0)
    assert (~solution.frozen[solution.class_of] == possible).all()


# ---- facts as a walk makes them -------------------------------------------------------------------------------------


@st.composite
def walks(draw: DrawFn) -> tuple[Flow, list[Ids]]:
    """Axes of 4 to 12 units, reshaped, permuted, joined and tied at random."""
    flow = Flow()
    size = draw(st.sampled_from([4, 6, 8, 12]))
    axes: list[Axis] = [flow.fresh_axis(size, 0.0) for _ in range(draw(st.integers(1, 3)))]
    tensors = [ids(axis) for axis in axes]
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["regroup", "swap", "order", "part", "join", "tie", "tie", "freeze"]))
        axis = axes[draw(st.integers(0, len(axes) - 1))]
        count = axis_size(axis)
        if kind == "regroup" and count > 1:
            outer = draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0]))
            parts = regroup(flow, [axis], [outer, count // outer])
            axes.append((*parts[0], *parts[1]))
        elif kind == "swap" and len(axis) == 2:
            axes.append((axis[1], axis[0]))
        elif kind == "order":
            axes.append(take(flow, axis, np.array(draw(st.permutations(range(count))), dtype=np.int64)))
        elif kind == "part" and count > 2:
            start = draw(st.integers(0, count - 2))
            end = draw(st.integers(start + 2, count))
            axes.append(take(flow, axis, np.arange(start, end)))
        elif kind == "join" and count <= 6:
            axes.append(concatenate(flow, [axis, axes[0]]))
        elif kind == "tie":
            same = [other for other in axes if axis_size(other) == count]
            flow.tie([axis, same[draw(st.integers(0, len(same) - 1))]])
        elif kind == "freeze":
            (flat,) = regroup(flow, [axis], [count])
            if flat and flat[0].ids is not None:
                flow.freeze(flow.merge(flat).ids[:1], "stays")  # type: ignore[index]
    tensors += [flow.merge(axis).ids for axis in axes if axis and flow.merge(axis).ids is not None]  # type: ignore[misc]
    return flow, tensors


@settings(max_examples=settings().max_examples * 3)
@given(walks())
def test_walks_are_satisfied_by_any_units_leaving(walk: tuple[Flow, list[Ids]]) -> None:
    flow, tensors = walk
    check(flow, tensors)


# ---- known answers --------------------------------------------------------------------------------------------------


def test_two_tied_axes_are_one_family() -> None:
    flow = Flow()
    a, b = flow.fresh_axis(5), flow.fresh_axis(5)
    flow.tie([a, b])
    assert units(flow, [ids(a), ids(b)]) == 5


def test_heads_and_head_channels_both_leave() -> None:
    flow = Flow()
    axis = flow.fresh_axis(12)
    heads, depth = regroup(flow, [axis], [3, 4])
    assert units(flow, [ids(axis)]) == 3 + 4
    assert axis_size(heads) == 3
    assert axis_size(depth) == 4


def test_queries_follow_their_key_and_value_head() -> None:
    """Six query heads on two key heads of depth 4: the repeats within a key head may leave, too."""
    flow = Flow()
    q, k = flow.fresh_axis(24), flow.fresh_axis(8)
    q_heads, q_depth = regroup(flow, [q], [6, 4])
    k_heads, k_depth = regroup(flow, [k], [2, 4])
    rows, _ = regroup(flow, [q_heads], [2, 3])
    flow.tie([rows, k_heads])
    flow.tie([q_depth, k_depth])
    assert units(flow, [ids(q), ids(k)]) == 2 + 3 + 4


def test_shuffle_chain_keeps_both_families() -> None:
    """Shuffle 12 channels in 3 groups, tie to the unshuffled ones' consumer, and shuffle back."""
    flow = Flow()
    axis = flow.fresh_axis(12)
    groups, inner = regroup(flow, [axis], [3, 4])
    (shuffled,) = regroup(flow, [inner, groups], [12])
    reader = flow.fresh_axis(12)
    flow.tie([shuffled, reader])
    back = regroup(flow, [reader], [4, 3])
    (again,) = regroup(flow, [back[1], back[0]], [12])
    flow.tie([again, axis])
    assert units(flow, [ids(axis), ids(reader)]) == 3 + 4


def test_nested_cuts_are_refined_to_one_grid() -> None:
    """12 as 3 x 4 and as 6 x 2 is 3 x 2 x 2."""
    flow = Flow()
    axis = flow.fresh_axis(12)
    for shape in ([3, 4], [6, 2]):
        regroup(flow, [axis], shape)
    assert units(flow, [ids(axis)]) == 3 + 2 + 2


def test_cuts_that_do_not_nest_freeze_with_that_reason() -> None:
    flow = Flow()
    axis = flow.fresh_axis(12)
    for shape in ([3, 4], [4, 3]):
        regroup(flow, [axis], shape)
    solution = check(flow, [ids(axis)])
    assert not len(free_leaves(solution))
    assert {solution.why(int(k)).text for k in solution.class_of[ids(axis)]} == {NESTED}


def test_a_plain_residual_beside_heads_makes_the_grid_bind() -> None:
    """An axis tied to one that is cut into heads can only leave by heads and head channels."""
    flow = Flow()
    axis, other = flow.fresh_axis(8), flow.fresh_axis(8)
    regroup(flow, [axis], [2, 4])
    flow.tie([axis, other])
    assert units(flow, [ids(axis), ids(other)]) == 2 + 4


def test_frozen_row_leaves_the_columns_to_no_one_else() -> None:
    """Freezing one position freezes its row and its column; the rest may leave."""
    flow = Flow()
    axis = flow.fresh_axis(12)
    regroup(flow, [axis], [3, 4])
    flow.freeze(ids(axis)[:1], "stays")
    solution = check(flow, [ids(axis)])
    assert len(free_leaves(solution)) == 2 + 3
    assert solution.why(int(solution.class_of[ids(axis)[0]])).text == "stays"


def test_all_columns_frozen_makes_rows_plain_units() -> None:
    flow = Flow()
    axis = flow.fresh_axis(12)
    _, inner = regroup(flow, [axis], [3, 4])
    flow.freeze_axis(inner, "is averaged over")
    solution = check(flow, [ids(axis)])
    assert len(free_leaves(solution)) == 3
    assert not solution.grids


def test_the_only_unit_of_an_axis_stays() -> None:
    flow = Flow()
    a, b = flow.fresh_axis(2), flow.fresh_axis(2)
    flow.union(ids(a), ids(b))
    flow.union(ids(a)[:1], ids(a)[1:])
    solution = check(flow, [ids(a)])
    assert not len(free_leaves(solution))
    assert solution.why(int(solution.class_of[ids(a)[0]])).text == EMPTY


def test_a_free_axis_freezes_what_is_tied_to_it() -> None:
    flow = Flow()
    axis = flow.fresh_axis(4)
    flow.tie([axis, regroup(flow, [flow.fresh_axis(4)], [4])[0]])
    flow.freeze(np.array([FIXED, *ids(axis)[:2]]), "is shown to the user")
    solution = check(flow, [ids(axis)])
    assert len(free_leaves(solution)) == 2
    reasons = [solution.why(int(k)).text for k in solution.class_of[ids(axis)] if solution.frozen[k]]
    assert reasons == ["is shown to the user"] * 2


@pytest.mark.parametrize("size", [64, 1024])
def test_many_chained_grids_settle(size: int) -> None:
    """A hundred grids one after another, as in a deep grouped network."""
    flow = Flow()
    before = flow.fresh_axis(size)
    tensors = [ids(before)]
    for _ in range(100):
        after = flow.fresh_axis(size)
        tensors.append(ids(after))
        groups, _ = regroup(flow, [before], [8, size // 8])
        out, _ = regroup(flow, [after], [8, size // 8])
        flow.tie([groups, out])
        before = after
    solution = solve(flow, tensors)
    assert len(free_leaves(solution)) == 8 + 101 * (size // 8)
