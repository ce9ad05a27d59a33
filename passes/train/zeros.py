"""Slices that are set to zero, once or after every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from coppice.core.tensors import local

if TYPE_CHECKING:
    from coppice.passes.train.units import UnitIndex

LONG = 256
"""Rows of at least this many numbers are cleared as rows, shorter ones by mask."""


class Zeros:
    """The slices of some units of an index (bool[units]), to be set to zero once or again and again."""

    def __init__(self, index: UnitIndex, which: torch.Tensor) -> None:
        places = [(slab, slab.where[which[slab.unit]]) for slab in (*index.slabs, *index.buffers)]
        self._places = [(slab.name, slab.axis, where) for slab, where in places if len(where)]
        self._known: dict[int, tuple[int, torch.Tensor, list[torch.Tensor]]] = {}

    def apply(self, tensors: Mapping[str, torch.Tensor], often: bool = False) -> None:
        """Set them to zero in ``tensors``, in place; names that are missing there are left out.

        With ``often``, what was looked up is kept for the next time, and on a CPU long rows are cleared as rows and
        short ones by mask, in half the time.
        """
        rows: list[torch.Tensor] = []
        for i, (name, axis, where) in enumerate(self._places):
            tensor = tensors.get(name)
            if tensor is None:
                continue
            own = local(tensor)
            known = self._known.get(i) if often else None
            if known is None or known[0] != own.data_ptr():  # the first time, or its memory has moved
                own = flat(own)
                near = often and own.device.type == "cpu"
                long = near and axis == 0 and own[0].numel() >= LONG
                what = _mask(own, axis, where) if near and not long else where.to(own.device)
                known = own.data_ptr(), what, _runs(own, where) if long else []
                if often:
                    self._known[i] = known
            if known[2]:
                rows += known[2]
            elif known[1].dtype == torch.bool:
                flat(own).masked_fill_(known[1], 0)
            else:
                flat(own).index_fill_(axis, known[1], 0)
        if rows:
            torch._foreach_zero_(rows)


def _mask(tensor: torch.Tensor, axis: int, where: torch.Tensor) -> torch.Tensor:
    """bool, True at ``where`` along ``axis``, shaped to meet ``tensor``."""
    shape = [1] * tensor.ndim
    shape[axis] = tensor.shape[axis]
    return torch.zeros(tensor.shape[axis], dtype=torch.bool).index_fill_(0, where, True).reshape(shape)


def _runs(tensor: torch.Tensor, where: torch.Tensor) -> list[torch.Tensor]:
    """Views of ``tensor`` along runs of consecutive rows."""
    ends = torch.cat([(where.diff() > 1).nonzero().flatten() + 1, torch.tensor([len(where)])]).tolist()
    return [tensor.narrow(0, int(where[a]), b - a) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of ``tensor``, detached; a tensor without axes has one of size 1."""
    own = local(tensor.detach())
    return own if own.ndim else own.reshape(1)
