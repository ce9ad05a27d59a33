"""Several ranks that must decide alike: they compare what they are about to do, and take rank 0's choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed

from coppice.core.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class Ranks:
    """The processes of ``group`` (None: all that were started together). One alone agrees with itself for free."""

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self.group = group

    @property
    def count(self) -> int:
        started = distributed.is_available() and distributed.is_initialized()
        return distributed.get_world_size(self.group) if started else 1

    def compare(self, facts: Mapping[str, object], place: str) -> None:
        """Raise `UsageError` naming the first fact in which some rank differs from rank 0."""
        if self.count == 1:
            return
        every: list[dict[str, str]] = [{}] * self.count
        distributed.all_gather_object(every, {key: repr(value) for key, value in facts.items()}, self.group)
        for rank, own in enumerate(every):
            for key, value in own.items():
                if value != every[0].get(key):
                    raise UsageError(
                        f"ranks disagree on the {key}: rank 0 has {_short(every[0].get(key, ''))}, rank {rank} has "
                        f"{_short(value)}",
                        place=place,
                        remedy="build the same model, space and optimizer on every rank, and load the same checkpoint",
                    )

    def proceed(self, fine: bool, step: int, device: torch.device, place: str) -> bool:
        """Whether all ranks are ``fine``; `UsageError` where they are not at the same step."""
        if self.count == 1:
            return fine
        facts = torch.tensor([not fine, step, -step], dtype=torch.int64, device=device)
        distributed.all_reduce(facts, op=distributed.ReduceOp.MAX, group=self.group)
        bad, last, first = facts.tolist()
        if last != -first:
            raise UsageError(
                f"ranks disagree on the step: they are between {-first} and {last}",
                place=place,
                remedy="call step() equally often on every rank, and load the same checkpoint",
            )
        return not bad

    def first(self, value: T) -> T:
        """Rank 0's ``value``."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."
