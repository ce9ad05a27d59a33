"""What extraction hands to the back ends: the small graph, what was kept, and which numbers changed."""

from __future__ import annotations

from dataclasses import dataclass

from coppice.core.graph import Graph
from coppice.core.solve import Bools


@dataclass(frozen=True)
class Literal:
    """A number in a call that changed with the cut: back ends look for the attribute it came from."""

    modules: tuple[str, ...]
    argument: str
    old: int
    new: int


@dataclass(frozen=True, eq=False)
class Extraction:
    """``kept[name][k]`` are the positions that stay along axis k of a tensor (None: all of them)."""

    graph: Graph
    kept: dict[str, tuple[Bools | None, ...]]
    literals: tuple[Literal, ...]
