"""What the kernels refuse: each error says the fact, the place and the remedy."""

from __future__ import annotations


class KernelError(ValueError):
    """An argument or a weight that no kernel may be given.

    ``fact`` says what is wrong, ``place`` which argument, ``remedy`` what to do next.
    """

    def __init__(self, fact: str, *, place: str, remedy: str) -> None:
        self.fact, self.place, self.remedy = fact, place, remedy
        super().__init__(f"{place}: {fact}\n  remedy: {remedy}")


class IsaError(KernelError):
    """The instruction set or the variant that was asked for is unknown, or this machine lacks it."""


class KernelsUnavailable(KernelError):
    """The C library is not there, or is not the one that this package was built with."""
