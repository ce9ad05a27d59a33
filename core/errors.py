"""Every error coppice raises on purpose: a fact, a place, a remedy, and the exit code of the command line."""

from __future__ import annotations


class CoppiceError(Exception):
    """Base of all coppice errors.

    ``fact`` says what is wrong, ``place`` where (a node, a parameter, a file and line), ``remedy`` what to do next.
    """

    exit_code = 1

    def __init__(self, fact: str, *, place: str = "", remedy: str = "") -> None:
        self.fact, self.place, self.remedy = fact, place, remedy
        where = f"{place}: " if place else ""
        then = f"\n  remedy: {remedy}" if remedy else ""
        super().__init__(f"{where}{fact}{then}")


class UsageError(CoppiceError):
    """The call itself is wrong: an unknown name, a malformed budget, inputs of the wrong shape."""

    exit_code = 2


class TraceError(CoppiceError):
    """The model cannot be turned into a graph."""

    exit_code = 3


class UnsupportedError(CoppiceError):
    """The graph is fine but holds something that the requested step cannot handle."""

    exit_code = 3


class BudgetError(CoppiceError):
    """No config of the space meets the budget; ``closest`` is the smallest reachable cost per metric."""

    exit_code = 4

    def __init__(self, fact: str, *, closest: dict[str, float], place: str = "", remedy: str = "") -> None:
        super().__init__(fact, place=place, remedy=remedy)
        self.closest = closest


class EquivalenceError(CoppiceError):
    """A subnet does not compute what its masked reference computes; ``error`` is the largest difference seen."""

    exit_code = 5

    def __init__(self, fact: str, *, error: float, place: str = "", remedy: str = "") -> None:
        super().__init__(fact, place=place, remedy=remedy)
        self.error = error


class VerifyError(CoppiceError):
    """A graph breaks an invariant of the language; always a bug in a pass, never the user's fault."""


class StaleFactError(CoppiceError):
    """An analysis result was used after the graph it was computed from had changed."""


def first_line(error: BaseException) -> str:
    """What ``error`` says first, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
