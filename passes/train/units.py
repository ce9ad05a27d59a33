"""Units as slices of live tensors: gather, scale, sum and zero all slices of many units at once.

Tensors may be sharded (DTensors, as FSDP2 leaves them). Each rank then works on its own rows, and sums over units are
added up over the mesh before anyone sees them, so that every rank decides on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from coppice.core.labels import Ids
from coppice.core.space import Space
from coppice.core.tensors import shard
from coppice.passes.train.zeros import Zeros, flat

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Parts = Sequence[torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class Slab:
    """Positions ``where`` along ``axis`` of one tensor, belonging to units ``unit`` (numbered within the index).

    Of a sharded tensor: the positions on this rank, counted within its part. ``mesh`` is what it is sharded over, and
    ``counts`` says whether this rank's part enters sums (one replica of several does).
    """

    name: str
    axis: int
    where: torch.Tensor
    unit: torch.Tensor
    entire: bool = False
    """Whether ``where`` is the whole axis in order."""
    mesh: DeviceMesh | None = None
    counts: bool = True


class UnitIndex:
    """The masked slices of some units of a space, by their leaf classes. All methods are linear in the slices.

    ``slabs`` are those of parameters; slices of buffers (running means) are only ever zeroed. Vectors over units have
    one entry per class given, in that order. ``whole`` names tensors that are units entirely: each position along axis
    0 of such a tensor is a unit of its own (a tensor without axes is one unit); they follow the classes in the order
    given, and slices that classes have in these tensors are left to them.

    ``live`` are the tensors that the index will work on; where they are sharded, the slabs are this rank's.
    """

    def __init__(
        self,
        space: Space,
        classes: Ids,
        whole: Sequence[str] = (),
        live: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._live = space.graph.tensors if live is None else live
        self._parameters = set(space.graph.parameters())
        self.count = len(classes)
        self.slabs: list[Slab] = []
        self.buffers: list[Slab] = []
        self.meshes: list[DeviceMesh] = []
        number = np.full(space.solution.size, -1, np.int64)
        number[classes] = np.arange(len(classes))
        for name, axes in space.tensor_axes.items():
            for k, ids in enumerate(axes):
                if ids is None or name in whole:
                    continue
                for column in space.leaves[space.solution.class_of[ids]].T:
                    unit = np.where(column >= 0, number[column], -1)
                    where = np.flatnonzero((unit >= 0) & space.masked[ids])
                    if len(where):
                        self._add(name, k, where, unit[where])
        for name in whole:
            size = self._live[name].shape[0] if self._live[name].ndim else 1
            self._add(name, 0, np.arange(size), self.count + np.arange(size))
            self.count += size
        self.names = sorted({slab.name for slab in self.slabs})

    def _add(self, name: str, axis: int, where: Ids, unit: Ids) -> None:
        tensor = self._live[name]
        size = tensor.shape[axis] if tensor.ndim else 1
        entire = len(where) == size and bool((where == np.arange(size)).all())
        mesh, counts = None, True
        part = shard(tensor)
        if part is not None:
            mesh, counts = part.mesh, part.counts
            low, high = part.bounds[axis] if tensor.ndim else (0, 1)
            here = (where >= low) & (where < high)
            where, unit = where[here] - low, unit[here]
            if mesh not in self.meshes:
                self.meshes.append(mesh)
        slab = Slab(name, axis, torch.from_numpy(where), torch.from_numpy(unit), entire, mesh, counts)
        (self.slabs if name in self._parameters else self.buffers).append(slab)

    # ---- slices ----------------------------------------------------------------------------------------------------

    def gather(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """A copy of every slab's slice of ``tensors`` (shaped like the graph's), in the order of ``slabs``.

        Half precision is widened to single; `write` narrows again.
        """
        parts = [self.select(i, tensors[slab.name]) for i, slab in enumerate(self.slabs)]
        return [part.to(_wide(part)) for part in parts]

    def select(self, i: int, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of slab i's slice of ``tensor``, on its device."""
        slab, own = self.slabs[i], flat(tensor)
        return own.index_select(slab.axis, slab.where.to(own.device))

    def look(self, tensors: Mapping[str, torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Like `gather`, to be read only: no copy where a slab is the whole axis. None where there is no tensor."""
        return [
            None
            if (tensor := tensors.get(slab.name)) is None
            else (flat(tensor) if slab.entire else self.select(i, tensor))
            for i, slab in enumerate(self.slabs)
        ]

    def write(self, tensors: Mapping[str, torch.Tensor], slices: Sequence[torch.Tensor]) -> None:
        """Put slices (as from `gather`) back in place."""
        for slab, part in zip(self.slabs, slices, strict=True):
            own = flat(tensors[slab.name])
            own.index_copy_(slab.axis, slab.where.to(own.device), part.to(own.dtype))

    def scale(self, tensors: Mapping[str, torch.Tensor], factors: torch.Tensor) -> None:
        """Multiply every unit's slices by its factor, in place; units of factor 1 are not touched."""
        moved = factors != 1
        for i, slab in enumerate(self.slabs):
            which = moved[slab.unit]
            if bool(which.any()):
                own, where, unit = flat(tensors[slab.name]), slab.where[which], slab.unit[which]
                part = own.index_select(slab.axis, where.to(own.device))
                own.index_copy_(slab.axis, where.to(own.device), part * self._shaped(factors[unit], i, part))

    def per_unit(self, values: torch.Tensor, i: int, like: torch.Tensor) -> torch.Tensor:
        """``values[unit]`` of slab i, shaped to multiply its slice."""
        return self._shaped(values[self.slabs[i].unit], i, like)

    def _shaped(self, values: torch.Tensor, i: int, like: torch.Tensor) -> torch.Tensor:
        shape = [1] * like.ndim
        shape[self.slabs[i].axis] = len(values)
        return values.to(like.device, like.dtype).reshape(shape)

    # ---- sums ------------------------------------------------------------------------------------------------------

    def sums(self, slices: Callable[[int], torch.Tensor | None]) -> torch.Tensor:
        """float64[units]: ``slices(i)``, shaped like slab i, summed over each unit (None counts as zero).

        Collective where tensors are sharded: every rank of the mesh must call it.
        """

        def rows(i: int) -> torch.Tensor | None:
            part = slices(i)
            return None if part is None else _rows(part, self.slabs[i].axis).sum(1, dtype=torch.float64)

        return self.reduce(rows)

    def squares(self, parts: Parts) -> torch.Tensor:
        """float64[units]: the sum of squares of ``parts`` (as from `gather` or `look`) over each unit."""

        def rows(i: int) -> torch.Tensor | None:
            part = parts[i]
            if part is None:
                return None
            rows_of = _rows(part, self.slabs[i].axis)
            return _norms(rows_of, _wide(rows_of)).double().square()

        return self.reduce(rows)

    def products(self, a: Parts, b: Parts) -> torch.Tensor:
        """float64[units]: the sum of ``a * b`` over each unit, None counting as zero."""

        def rows(i: int) -> torch.Tensor | None:
            x, y = a[i], b[i]
            if x is None or y is None:
                return None
            axis, wide = self.slabs[i].axis, _wide(x)
            dots: torch.Tensor = torch.linalg.vecdot(_rows(x, axis).to(wide), _rows(y, axis).to(wide), dim=1)
            return dots

        return self.reduce(rows)

    def sizes(self) -> torch.Tensor:
        """float64[units]: how many numbers each unit has."""

        def rows(i: int) -> torch.Tensor:
            slab, own = self.slabs[i], flat(self._live[self.slabs[i].name])
            return torch.full((len(slab.where),), own.numel() / max(own.shape[slab.axis], 1), dtype=torch.float64)

        return self.reduce(rows)

    def shares(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """float64[units]: each unit's share of the squared norm of every tensor it has slices in, added up."""
        parts = self.look(dict(tensors))
        totals = [_square(tensors[slab.name]) if slab.counts else 0.0 for slab in self.slabs]
        for mesh in self.meshes:
            at = [i for i, slab in enumerate(self.slabs) if slab.mesh is mesh]
            summed = over(torch.tensor([totals[i] for i in at], dtype=torch.float64), mesh).tolist()
            totals = [summed[at.index(i)] if i in at else total for i, total in enumerate(totals)]

        def rows(i: int) -> torch.Tensor | None:
            part = parts[i]
            if part is None:
                return None
            return _norms(_rows(part, self.slabs[i].axis), torch.float64).square() / max(totals[i], 1e-30)

        return self.reduce(rows)

    def reduce(self, rows: Callable[[int], torch.Tensor | None]) -> torch.Tensor:
        """float64[units]: ``rows(i)``, one number per position of slab i, added up over units and over the mesh."""
        total = torch.zeros(self.count, dtype=torch.float64)
        shared = {mesh: torch.zeros_like(total) for mesh in self.meshes}
        for i, slab in enumerate(self.slabs):
            values = rows(i)
            if values is not None and slab.counts:
                own = total if slab.mesh is None else shared[slab.mesh]
                own.index_add_(0, slab.unit, values.double().cpu())
        for mesh in self.meshes:
            total += over(shared[mesh], mesh)
        return total

    # ---- zeros -----------------------------------------------------------------------------------------------------

    def zero(self, tensors: Mapping[str, torch.Tensor], which: torch.Tensor) -> None:
        """Set the slices of the units where ``which`` (bool[units]) to exactly zero, in place, buffers' too."""
        Zeros(self, which).apply(tensors)


def over(values: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """``values`` summed over all ranks of ``mesh``."""
    from torch.distributed import all_reduce

    total = values.to(mesh.device_type)
    for dim in range(mesh.ndim):
        all_reduce(total, group=mesh.get_group(dim))
    return total.cpu()


def _rows(part: torch.Tensor, axis: int) -> torch.Tensor:
    """[positions, rest]: one row per position of ``axis``."""
    moved = part.movedim(axis, 0)
    return moved.reshape(moved.shape[0], -1) if moved.numel() else moved.new_zeros(moved.shape[0], 1)


def _norms(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    return norms


def _square(tensor: torch.Tensor) -> float:
    """The squared norm of this rank's part of ``tensor``."""
    return float(torch.linalg.vector_norm(flat(tensor), dtype=torch.float64)) ** 2


def _wide(tensor: torch.Tensor) -> torch.dtype:
    """The precision to add up in: at least single."""
    return torch.promote_types(tensor.dtype, torch.float32)
