"""A config: for every family of a space, the units that stay; and the segments that are erased."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coppice.core.errors import UsageError


@dataclass(frozen=True)
class Config(Mapping[str, tuple[int, ...]]):
    """Maps each family's name to the sorted indices of the units that stay. Immutable, hashable, JSON both ways.

    ``skip`` names the segments that are erased.
    """

    keep: tuple[tuple[str, tuple[int, ...]], ...]
    space: str = field(default="", compare=False)
    """The fingerprint of the space it was made in, or "" for one made by hand or read from a file."""
    skip: tuple[str, ...] = ()

    @classmethod
    def of(cls, keep: Mapping[str, object], space: str = "", skip: Iterable[str] = ()) -> Config:
        """From any mapping of family names to iterables of unit indices; `UsageError` where an entry is not that."""
        entries = []
        for name, units in keep.items():
            try:
                indices = sorted({int(u) for u in units})  # type: ignore[attr-defined]
            except (TypeError, ValueError) as error:
                raise UsageError(f"{units!r} is not a list of unit indices", place=f"config entry {name!r}") from error
            entries.append((str(name), tuple(indices)))
        return cls(tuple(entries), space, tuple(skip))

    def __getitem__(self, name: str) -> tuple[int, ...]:
        for key, units in self.keep:
            if key == name:
                return units
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.keep)

    def __len__(self) -> int:
        return len(self.keep)

    def widths(self) -> dict[str, int]:
        """How many units of each family stay."""
        return {name: len(units) for name, units in self.keep}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``{"keep": {family: [units]}, "skip": [segments]}``."""
        return {"keep": {name: list(units) for name, units in self.keep}, "skip": list(self.skip)}

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read what `to_json` wrote; `UsageError` for any other text."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"it is not JSON: {error}", place="config") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> Config:
        """Read what `to_dict` gave; `UsageError` for anything else."""
        good = isinstance(data, dict) and data.keys() == {"keep", "skip"} and isinstance(data["keep"], dict)
        if not good or not isinstance(data["skip"], list) or not all(isinstance(name, str) for name in data["skip"]):
            raise UsageError('it is not {"keep": {family: [units]}, "skip": [segments]}', place="config")
        return cls.of(data["keep"], skip=data["skip"])
