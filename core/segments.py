"""Segments: operands that a join can do without, and which sets of them leave a valid graph when they are erased.

A *join* is a call that goes on without one of its operands: a sum where that operand is zero, a concatenation of one
part fewer. A *segment* is such an operand with everything that only it needs: a residual branch, one of several
parallel operators, the inner half of a U-Net. Segments nest: their hierarchy is a tree (``Segment.parent``).

What is still needed once some are erased follows from the joins alone: a call lives while one of its users lives and
the operand between them is not erased. Calls with equal answers share one *rule*, so a whole population of choices is
decided by a few boolean vectors.

A choice is valid if every join that lives keeps an operand that comes from the model's input and has the join's own
shape, and if every input is still read. Then a path leads from the output back to an input, because each call on the
way has an operand from the input that lives; and no shape has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import fx

from coppice.core.errors import UsageError
from coppice.core.labels import Ids
from coppice.core.names import unknown_name
from coppice.core.solve import Bools

ALWAYS = 0
"""The rule of what is needed whatever is erased."""

Rule = tuple[tuple[int, int], ...]
"""(rule of a user, segment whose operand lies between or -1): what holds while one of them does."""


@dataclass(frozen=True, eq=False)
class Segment:
    """``operand`` of ``join`` and what only it needs: ``tensors``, and ``calls`` calls.

    An operand that is concatenated leaves with all units of ``families``, whose leaf classes are ``classes``; one that
    is added leaves no units. ``modules`` (outermost first) are those in which the join was made and every call that
    reads one of ``tensors``.
    """

    name: str
    join: fx.Node
    operand: fx.Node
    parent: str
    tensors: tuple[str, ...]
    calls: int
    source: str
    modules: tuple[str, ...] = ()
    families: tuple[int, ...] = ()
    classes: Ids = field(default_factory=lambda: np.zeros(0, np.int64))

    def __repr__(self) -> str:
        return f"Segment({self.name!r}, {self.calls} calls, {len(self.tensors)} tensors)"


@dataclass(frozen=True)
class Choice:
    """Parallel operators between one fork and one join: each of ``branches`` can stand alone."""

    name: str
    branches: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Liveness:
    """When nodes and tensors are needed. Rules stand in an order where those of users come first."""

    rules: tuple[Rule, ...] = ((),)
    nodes: Mapping[fx.Node, int] = field(default_factory=dict)
    tensors: Mapping[str, int] = field(default_factory=dict)

    def evaluate(self, erased: Bools) -> Bools:
        """bool[n, rules] for bool[n, segments]."""
        result = np.zeros((len(erased), len(self.rules)), bool)
        result[:, ALWAYS] = True
        for k, rule in enumerate(self.rules):
            for user, segment in rule:
                result[:, k] |= result[:, user] if segment < 0 else result[:, user] & ~erased[:, segment]
        return result


@dataclass(frozen=True, eq=False)
class Segments(Sequence[Segment]):
    """The segments of one graph. ``keepers[join]`` are those of its operands one of which must stay, by segment."""

    items: tuple[Segment, ...] = ()
    liveness: Liveness = field(default_factory=Liveness)
    keepers: Mapping[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    inputs: tuple[fx.Node, ...] = ()
    choices: tuple[Choice, ...] = ()

    def __getitem__(self, k: int) -> Segment:  # type: ignore[override]
        return self.items[k]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.items)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_number", {segment.name: k for k, segment in enumerate(self.items)})

    def number(self, name: str) -> int:
        """The position of the segment called ``name``; `UsageError` with the nearest name where there is none."""
        numbers: dict[str, int] = self._number  # type: ignore[attr-defined]
        if name not in numbers:
            raise unknown_name("segment", name, numbers)
        return numbers[name]

    def named(self, name: str) -> Segment:
        return self.items[self.number(name)]

    def erased(self, names: Iterable[str]) -> Bools:
        """bool[segments]: those in ``names``."""
        result = np.zeros(len(self.items), bool)
        result[[self.number(name) for name in names]] = True
        return result

    def valid(self, erased: Bools) -> Bools:
        """bool[n]: which choices bool[n, segments] leave a valid graph."""
        live = self.liveness.evaluate(erased)
        result = np.ones(len(erased), bool)
        for join, operands in self.keepers.items():
            left = ~erased[:, list(operands)].all(axis=1)
            result &= left | ~live[:, self.liveness.nodes[join]]
        for node in self.inputs:
            result &= live[:, self.liveness.nodes[node]]
        return result

    def check(self, names: Iterable[str]) -> tuple[str, ...]:
        """``names`` in order, without those inside another; `UsageError` where they cannot all be erased."""
        erased = self.erased(names)
        if not erased.any():
            return ()
        live = self.liveness.evaluate(erased[None])[0]
        for join, operands in self.keepers.items():
            if live[self.liveness.nodes[join]] and erased[list(operands)].all():
                gone = ", ".join(self.items[k].name for k in operands)
                raise UsageError(
                    f"erasing {gone} leaves nothing of `{join.name}` to go on with",
                    place=f"segment {self.items[operands[0]].name}",
                    remedy="keep one of them",
                )
        for node in self.inputs:
            if not live[self.liveness.nodes[node]]:
                raise UsageError(
                    f"the input `{node.target}` would no longer be read",
                    place=f"segments {', '.join(self.items[k].name for k in np.flatnonzero(erased))}",
                    remedy="keep one of the segments that read it",
                )
        joins = (self.liveness.nodes[segment.join] for segment in self.items)
        return tuple(s.name for s, gone, rule in zip(self.items, erased, joins, strict=True) if gone and live[rule])

    def walk(
        self, order: Iterable[int], allowed: Callable[[Bools], bool] = lambda erased: True
    ) -> Iterator[tuple[int, Bools]]:
        """Erase segments one after the other where that is valid and ``allowed``: each, and all that are so far."""
        erased = np.zeros(len(self.items), bool)
        for k in order:
            trial = erased.copy()
            trial[k] = True
            needed = self.liveness.evaluate(erased[None])[0, self.liveness.nodes[self.items[k].join]]
            if needed and self.valid(trial[None])[0] and allowed(trial):
                erased = trial
                yield k, erased.copy()

    def choose(self, choices: Mapping[str, str]) -> tuple[str, ...]:
        """The segments to erase so that of each named choice one branch is left."""
        known = {choice.name: choice for choice in self.choices}
        gone: list[str] = []
        for name, branch in choices.items():
            if name not in known:
                raise unknown_name("choice", name, known)
            if branch not in known[name].branches:
                raise unknown_name(f"branch of {name}", branch, known[name].branches)
            gone += [other for other in known[name].branches if other != branch]
        return self.check(self._lifted(gone))

    def _lifted(self, names: Iterable[str]) -> list[str]:
        """``names``, and the sum itself wherever all that it sums up is among them."""
        erased = self.erased(names)
        operand = {segment.operand: k for k, segment in enumerate(self.items)}
        order = {node: rule for node, rule in self.liveness.nodes.items() if node in self.keepers}
        for join in sorted(self.keepers, key=lambda node: -order[node]):  # those of users come first
            if erased[list(self.keepers[join])].all() and join in operand:
                erased[operand[join]] = True
        return [self.items[k].name for k in np.flatnonzero(erased)]
