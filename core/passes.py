"""Passes: frozen values with ``run(graph) -> changed``. A pipeline is itself a pass; it verifies, times and shows.

Pipeline((EraseIdentities(), EraseDead()), observer=print).run(graph)
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from coppice.core.errors import VerifyError
from coppice.core.graph import Graph


class Pass(ABC):
    """One rewrite of a graph, in place. Subclasses are frozen dataclasses whose fields are their options."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def run(self, graph: Graph) -> bool:
        """Rewrite ``graph`` and say whether anything changed."""


@dataclass(frozen=True)
class Step:
    """What an observer is told after each pass: the graph as it now is, and what it took."""

    name: str
    changed: bool
    seconds: float
    graph: Graph = field(repr=False)


@dataclass(frozen=True)
class Pipeline(Pass):
    """Run ``passes`` in order, verifying the graph after each; ``repeat`` runs the whole until nothing changes.

    Raises `VerifyError` naming the pass that broke the graph, or that lied about having changed it.
    """

    passes: tuple[Pass, ...]
    repeat: bool = False
    observer: Callable[[Step], None] | None = None

    def run(self, graph: Graph) -> bool:
        changed = False
        while True:
            again = [self._step(one, graph) for one in self.passes]
            changed |= any(again)
            if not (self.repeat and any(again)):
                return changed

    def _step(self, one: Pass, graph: Graph) -> bool:
        version, start = graph.version, time.perf_counter()
        changed = one.run(graph)
        seconds = time.perf_counter() - start
        if changed != (graph.version != version):
            said = "changed the graph" if changed else "left the graph alone"
            raise VerifyError(f"it says it {said}, and the graph's version says otherwise", place=f"pass {one.name}")
        try:
            graph.verify()
        except VerifyError as error:
            raise VerifyError(error.fact, place=f"after pass {one.name}, {error.place}") from error
        if self.observer is not None:
            self.observer(Step(one.name, changed, seconds, graph))
        return changed
