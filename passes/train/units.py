"""Units as slices of live tensors: gather, scale and sum over all slices of many units at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from coppice.core.space import Space


@dataclass(frozen=True, eq=False)
class Slab:
    """Positions ``where`` along ``axis`` of one tensor, belonging to units ``unit`` (numbered within the index)."""

    name: str
    axis: int
    where: torch.Tensor
    unit: torch.Tensor


class UnitIndex:
    """The masked slices of some units of a space, by their leaf classes. All methods are linear in the slices.

    ``slabs`` are those of parameters; slices of buffers (running means) are only ever zeroed. Vectors over units have
    one entry per class given, in that order.
    """

    def __init__(self, space: Space, classes: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        self.count = len(classes)
        number = np.full(space.solution.size, -1, np.int64)
        number[classes] = np.arange(len(classes))
        self.slabs: list[Slab] = []
        self.buffers: list[Slab] = []
        parameters = space.graph.parameters()
        for name, axes in space.tensor_axes.items():
            for k, ids in enumerate(axes):
                if ids is None:
                    continue
                for column in space.leaves[space.solution.class_of[ids]].T:
                    unit = np.where(column >= 0, number[column], -1)
                    where = np.flatnonzero((unit >= 0) & space.masked[ids])
                    if len(where):
                        own = self.slabs if name in parameters else self.buffers
                        own.append(Slab(name, k, torch.from_numpy(where), torch.from_numpy(unit[where])))
        self.names = sorted({slab.name for slab in self.slabs})

    def gather(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """A copy of every slab's slice of ``tensors`` (shaped like the graph's), in the order of ``slabs``."""
        return [self.select(i, tensors[slab.name]) for i, slab in enumerate(self.slabs)]

    def select(self, i: int, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of slab i's slice of ``tensor``, on its device."""
        slab = self.slabs[i]
        return tensor.detach().index_select(slab.axis, slab.where.to(tensor.device))

    def sums(self, slices: Callable[[int], torch.Tensor | None]) -> torch.Tensor:
        """float64[units]: ``slices(i)``, shaped like slab i, summed over each unit (None counts as zero)."""
        total = torch.zeros(self.count, dtype=torch.float64)
        for i, slab in enumerate(self.slabs):
            part = slices(i)
            if part is not None:
                others = [d for d in range(part.ndim) if d != slab.axis]
                flat = part.sum(dim=others, dtype=torch.float64) if others else part.double()
                total.index_add_(0, slab.unit, flat.cpu())
        return total

    def per_unit(self, values: torch.Tensor, i: int, like: torch.Tensor) -> torch.Tensor:
        """``values[unit]`` of slab i, shaped to multiply its slice."""
        slab = self.slabs[i]
        shape = [1] * like.ndim
        shape[slab.axis] = len(slab.where)
        return values[slab.unit].to(like.device, like.dtype).reshape(shape)

    def write(self, tensors: Mapping[str, torch.Tensor], slices: list[torch.Tensor]) -> None:
        """Put slices (as from `gather`) back in place."""
        for slab, part in zip(self.slabs, slices, strict=True):
            tensors[slab.name].index_copy_(slab.axis, slab.where.to(part.device), part)

    def zero(self, tensors: Mapping[str, torch.Tensor], which: torch.Tensor) -> None:
        """Set the slices of the units where ``which`` (bool[units]) to exactly zero, in place, buffers' too."""
        for slab in (*self.slabs, *self.buffers):
            where = slab.where[which[slab.unit]]
            if len(where) and slab.name in tensors:
                tensors[slab.name].index_fill_(slab.axis, where.to(tensors[slab.name].device), 0.0)
