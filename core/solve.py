"""Which units can leave, given the facts of a walk: union-find over variables with grids, to a fixed point.

A variable's class is its connected component under ``union``. Grids relate classes by ``flat = row or column``; they
are simplified until every class is either a *leaf* (a unit of its own) or defined by exactly one grid. Each rule below
strengthens the facts (adds an equality, or freezes), so whatever it does, the solution still satisfies all of them:

1. a frozen flat position freezes its coordinates, and frozen coordinates freeze the position;
2. where one coordinate is left unfrozen, the position equals it;
3. two grids over the same classes have equal parts; over nested shapes, both become one refined grid;
4. two positions of one grid in the same class have equal coordinates;
5. a unit whose removal would empty an axis of a tensor is frozen;
6. what two grids still define in different ways is settled by freezing all but the longest part of each.

Every rule is a handful of numpy operations over all positions; the number of rounds follows the nesting depth of the
reshapes, not the size of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from coppice.core.labels import FIXED, Flow, Grid, Ids, Reason, refinement

Bools = npt.NDArray[np.bool_]

NESTED = "two reshapes cut this axis in ways that do not nest, so no unit of both can leave"
ONE = "nothing: a layer keeps at least one unit"
EMPTY = "is the only unit of its axis; removing it would leave nothing"
PLAIN = "cannot leave: no parameter makes it"


@dataclass(frozen=True, eq=False)
class Solution:
    """The classes of all variables: what is frozen and why, what is a leaf, and how the rest follows from leaves."""

    class_of: Ids
    frozen: Bools
    reason: Ids
    reasons: tuple[Reason, ...]
    grids: tuple[Grid, ...]
    """Definitions in terms of classes, ordered so that parts come before the flats that use them."""

    @property
    def size(self) -> int:
        return len(self.frozen)

    @cached_property
    def leaves(self) -> Ids:
        """`leaf_table` of this solution."""
        return leaf_table(self.frozen, self.grids)

    def why(self, klass: int) -> Reason:
        index = int(self.reason[klass])
        return self.reasons[index] if index >= 0 else Reason(PLAIN)

    def spread(self, removed: Bools) -> Bools:
        """All removed classes, given the removed leaves: ``removed`` is bool[..., classes] and is not changed."""
        removed = removed.copy()
        for grid in self.grids:
            removed[..., grid.flat] |= _outer_or([removed[..., part] for part in grid.parts])
        return removed


def _outer_or(parts: list[Bools]) -> Bools:
    total = parts[0]
    for part in parts[1:]:
        size = total.shape[-1] * part.shape[-1]
        total = (total[..., :, None] | part[..., None, :]).reshape(*total.shape[:-1], size)
    return total


def coordinates(shape: tuple[int, ...]) -> list[Ids]:
    """Row-major coordinates of every position of a grid: one int array of length prod(shape) per part."""
    return [axis.reshape(-1).astype(np.int64) for axis in np.indices(shape)]


def solve(flow: Flow, tensor_axes: list[Ids], freezes: Sequence[tuple[Ids, Reason]] = ()) -> Solution:
    """Settle all facts of ``flow``, which stays as it is, and ``freezes`` beside them.

    ``tensor_axes`` are the variables along each axis of each tensor (for rule 5).
    """
    return _Solver(flow, tensor_axes, freezes).run()


@dataclass
class _Solver:
    flow: Flow
    tensor_axes: list[Ids]
    extra: Sequence[tuple[Ids, Reason]]
    count: int = 0
    grids: list[Grid] = field(default_factory=list)
    edges: list[tuple[Ids, Ids]] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    marks: list[tuple[Ids, int]] = field(default_factory=list)

    def run(self) -> Solution:
        self.count = self.flow.count
        self.grids, self.edges = list(self.flow.grids), list(self.flow.edges)
        self._freeze(np.array([FIXED]), Reason(PLAIN))
        for ids, reason in (*self.extra, *self.flow.freezes):
            self._freeze(ids, reason)
        settle = (self._propagate, self._congruent, self._duplicates, self._acyclic, self._emptying, self._conflicts)
        while True:
            self._classify()
            if not any(rule() for rule in settle):  # each rule runs only once those before it are content
                break
        return Solution(
            self.cls, self.frozen, self.reason, tuple(self.reasons), tuple(self._ordered(self._class_grids()))
        )

    # ---- state ---------------------------------------------------------------------------------------------------

    def _freeze(self, ids: Ids, reason: Reason) -> None:
        if not self.reasons or self.reasons[-1] is not reason:
            self.reasons.append(reason)
        self.marks.append((ids, len(self.reasons) - 1))

    def _classify(self) -> None:
        n = self.count
        if self.edges:
            a = np.concatenate([edge[0] for edge in self.edges])
            b = np.concatenate([edge[1] for edge in self.edges])
            pairs = np.unique(np.stack([a, b], axis=1), axis=0) if len(a) > 4 * n else np.stack([a, b], axis=1)
            self.edges = [(pairs[:, 0], pairs[:, 1])]
            matrix = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
            count, cls = connected_components(matrix, directed=False)
        else:
            count, cls = n, np.arange(n)
        self.cls: Ids = cls.astype(np.int64)
        self.frozen: Bools = np.zeros(count, bool)
        self.reason: Ids = np.full(count, -1, np.int64)
        for ids, index in reversed(self.marks):  # earlier marks overwrite later ones: the first reason is shown
            classes = self.cls[ids]
            self.frozen[classes] = True
            self.reason[classes] = index

    def _class_grids(self) -> list[Grid]:
        return [Grid(self.cls[grid.flat], tuple(self.cls[part] for part in grid.parts)) for grid in self.grids]

    def _mark(self, ids: Ids, classes: Ids, donor_classes: Ids) -> None:
        """Freeze ``ids`` with the reasons of ``donor_classes`` (aligned arrays)."""
        for index in np.unique(self.reason[donor_classes]):
            self.marks.append((ids[self.reason[donor_classes] == index], int(index)))

    # ---- rules: each returns whether it changed anything ------------------------------------------------------------

    def _propagate(self) -> bool:
        """Rules 1 and 2."""
        changed = False
        kept: list[Grid] = []
        for grid in self.grids:
            at = coordinates(grid.shape)
            flat = self.cls[grid.flat]
            cells = [self.cls[part][where] for part, where in zip(grid.parts, at, strict=True)]
            still = np.stack([self.frozen[cell] for cell in cells])
            for k, cell in enumerate(cells):
                hit = self.frozen[flat] & ~still[k]
                if hit.any():
                    self._mark(grid.parts[k][at[k][hit]], cell[hit], flat[hit])
                    changed = True
            alive = (~still).sum(axis=0)
            dead = (alive == 0) & ~self.frozen[flat]
            if dead.any():
                self._mark(grid.flat[dead], flat[dead], cells[0][dead])
                changed = True
            for k, cell in enumerate(cells):
                equal = (alive == 1) & ~still[k] & ~self.frozen[flat] & (cell != flat)
                if equal.any():
                    self.edges.append((grid.flat[equal], grid.parts[k][at[k][equal]]))
                    changed = True
            if (alive > 1).any() or changed:
                kept.append(grid)
        self.grids = kept
        return changed

    def _congruent(self) -> bool:
        """Rule 3."""
        changed = False
        seen: dict[bytes, Grid] = {}
        result: list[Grid] = []
        for grid in self.grids:
            key = self.cls[grid.flat].tobytes()
            first = seen.get(key)
            if first is None:
                seen[key] = grid
                result.append(grid)
                continue
            changed = True
            if first.shape == grid.shape:
                self.edges += list(zip(first.parts, grid.parts, strict=True))
                continue
            sizes = refinement(first.shape, grid.shape)
            if sizes is None:
                for part in (*first.parts, *grid.parts):
                    self._freeze(part, Reason(NESTED))
                continue
            fine = tuple(self._fresh(size) for size in sizes)
            result[result.index(first)] = seen[key] = Grid(first.flat, fine)
            for coarse in (first, grid):
                result += self._tie_parts(coarse.parts, fine)
        self.grids = result
        return changed

    def _fresh(self, size: int) -> Ids:
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def _tie_parts(self, coarse: tuple[Ids, ...], fine: tuple[Ids, ...]) -> list[Grid]:
        new: list[Grid] = []
        rest = list(fine)
        for part in coarse:
            take = [rest.pop(0)]
            while np.prod([len(t) for t in take]) < len(part):
                take.append(rest.pop(0))
            if len(take) == 1:
                self.edges.append((part, take[0]))
            else:
                new.append(Grid(part, tuple(take)))
        return new

    def _duplicates(self) -> bool:
        """Rule 4, and its like between grids that overlap in part with matching coordinates."""
        changed = False
        entries = self._entries()
        if entries is None:
            return False
        classes, owner, position = entries
        for a, b in self._overlaps(classes, owner):
            one, two = self.grids[owner[a[0]]], self.grids[owner[b[0]]]
            if len(one.parts) != len(two.parts):
                continue
            at = [np.unravel_index(position[a], one.shape), np.unravel_index(position[b], two.shape)]
            if one is not two and not all(_one_to_one(x, y) for x, y in zip(*at, strict=True)):
                continue
            for k in range(len(one.parts)):
                left, right = one.parts[k][at[0][k]], two.parts[k][at[1][k]]
                differ = self.cls[left] != self.cls[right]
                if differ.any():
                    self.edges.append((left[differ], right[differ]))
                    changed = True
        return changed

    def _open(self, grid: Grid) -> Ids:
        """The flat positions that the grid still defines: two or more of their coordinates are unfrozen."""
        alive = sum(
            (~self.frozen[self.cls[part]][where]).astype(np.int64)
            for part, where in zip(grid.parts, coordinates(grid.shape), strict=True)
        )
        return np.flatnonzero(np.asarray(alive) > 1)

    def _entries(self) -> tuple[Ids, Ids, Ids] | None:
        """Every (class, grid, flat position) that a grid defines, sorted by class."""
        if not self.grids:
            return None
        position = [self._open(grid) for grid in self.grids]
        owners = np.concatenate([np.full(len(at), k) for k, at in enumerate(position)])
        classes = np.concatenate([self.cls[grid.flat[at]] for grid, at in zip(self.grids, position, strict=True)])
        order = np.argsort(classes, kind="stable")
        return classes[order], owners[order], np.concatenate(position)[order]

    @staticmethod
    def _overlaps(classes: Ids, owner: Ids) -> list[tuple[Ids, Ids]]:
        """Neighbouring entries of the same class, gathered by the pair of grids they belong to."""
        at = np.flatnonzero(classes[1:] == classes[:-1])
        if not len(at):
            return []
        pair = np.stack([owner[at], owner[at + 1]], axis=1)
        _, inverse = np.unique(pair, axis=0, return_inverse=True)
        order = np.argsort(inverse.reshape(-1), kind="stable")
        groups = np.split(at[order], np.flatnonzero(np.diff(inverse.reshape(-1)[order])) + 1)
        return [(group, group + 1) for group in groups]

    def _emptying(self) -> bool:
        """Rule 5."""
        changed = False
        table = leaf_table(self.frozen, self._ordered(self._class_grids()))
        member = np.zeros(len(self.frozen), np.int64)
        member[self.cls] = np.arange(len(self.cls))
        for ids in self.tensor_axes:
            rows = table[self.cls[ids]]
            for leaf in rows[0][rows[0] >= 0].tolist():
                if not self.frozen[leaf] and bool((rows == leaf).any(axis=1).all()):
                    self._freeze(member[leaf : leaf + 1], Reason(EMPTY, remedy=ONE))
                    self.frozen[leaf] = True
                    changed = True
        return changed

    def _definitions(self) -> tuple[Ids, Ids]:
        """Per class, a grid that defines it (or -1) and its flat position there."""
        owner = np.full(len(self.frozen), -1, np.int64)
        position = np.zeros(len(self.frozen), np.int64)
        for k, grid in reversed(list(enumerate(self.grids))):
            at = self._open(grid)
            flat = self.cls[grid.flat[at]]
            owner[flat], position[flat] = k, at
        return owner, position

    def _acyclic(self) -> bool:
        """A class must not be defined through itself; where it is, the loop is cut by freezing."""
        loops = [c for c in nx.strongly_connected_components(self._dependencies()) if len(c) > 1]
        owners = [k for k, grid in enumerate(self.grids) if self._through_itself(grid)]
        for k in sorted(set(owners).union(*loops) if loops else owners):
            self._keep_longest(self.grids[k])
        return bool(loops or owners)

    def _through_itself(self, grid: Grid) -> bool:
        defined = self.cls[grid.flat[self._open(grid)]]
        return bool(np.isin(defined, self.cls[np.concatenate(grid.parts)]).any())

    def _conflicts(self) -> bool:
        """Rule 6."""
        entries = self._entries()
        if entries is None:
            return False
        classes, owner, position = entries
        changed = False
        for a, b in self._overlaps(classes, owner):
            one, two = self.grids[owner[a[0]]], self.grids[owner[b[0]]]
            if not self._same_coordinates(one, position[a], two, position[b]):
                self._keep_longest(one)
                self._keep_longest(two)
                changed = True
        return changed

    def _same_coordinates(self, one: Grid, a: Ids, two: Grid, b: Ids) -> bool:
        if len(one.parts) != len(two.parts):
            return False
        at = np.unravel_index(a, one.shape), np.unravel_index(b, two.shape)
        return all(
            (self.cls[p[i]] == self.cls[q[j]]).all() for p, q, i, j in zip(one.parts, two.parts, *at, strict=True)
        )

    def _keep_longest(self, grid: Grid) -> None:
        alive = [int((~self.frozen[self.cls[part]]).sum()) for part in grid.parts]
        longest = int(np.argmax(alive))
        for k, part in enumerate(grid.parts):
            if k != longest:
                self._freeze(part, Reason(NESTED))

    # ---- order ---------------------------------------------------------------------------------------------------

    def _dependencies(self) -> nx.DiGraph:
        order: nx.DiGraph = nx.DiGraph()
        order.add_nodes_from(range(len(self.grids)))
        owner, _ = self._definitions()
        for k, grid in enumerate(self.grids):
            before = np.unique(owner[self.cls[np.concatenate(grid.parts)]])
            order.add_edges_from((j, k) for j in before.tolist() if j not in (-1, k))
        return order

    def _ordered(self, grids: list[Grid]) -> list[Grid]:
        return [grids[k] for k in nx.topological_sort(self._dependencies())]


def leaf_table(frozen: Bools, grids: Sequence[Grid]) -> Ids:
    """int[classes, depth]: the leaves that remove each class (itself for a leaf, none for a frozen one), -1 padded.

    ``grids`` are in terms of classes, in an order where parts come before the flats that use them.
    """
    table = np.where(frozen, -1, np.arange(len(frozen)))[:, None]
    for grid in grids:
        at = coordinates(grid.shape)
        rows = np.concatenate([table[part[where]] for part, where in zip(grid.parts, at, strict=True)], axis=1)
        rows = -np.sort(-rows, axis=1)  # leaves first, padding last
        used = max(1, int((rows >= 0).any(axis=0).sum()))
        if used > table.shape[1]:
            table = np.pad(table, ((0, 0), (0, used - table.shape[1])), constant_values=-1)
        table[grid.flat] = np.pad(rows[:, :used], ((0, 0), (0, table.shape[1] - used)), constant_values=-1)
    return table


def _one_to_one(x: Ids, y: Ids) -> bool:
    pairs = np.unique(np.stack([x, y], axis=1), axis=0)
    return len(np.unique(pairs[:, 0])) == len(pairs) == len(np.unique(pairs[:, 1]))
