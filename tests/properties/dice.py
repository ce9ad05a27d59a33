"""Choices while a network grows: hypothesis draws them, so a failing network shrinks to the layers that matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

T = TypeVar("T")

WIDTHS = (2, 4, 6, 8)


class Dice:
    """Small choices, each shrinking towards its first option."""

    def __init__(self, draw: DrawFn) -> None:
        self._draw = draw

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[self._draw(st.integers(0, len(options) - 1))]

    def flag(self) -> bool:
        """False, or after more luck True."""
        return self._draw(st.booleans())

    def number(self, low: int, high: int) -> int:
        """An integer between ``low`` and ``high``, both included."""
        return self._draw(st.integers(low, high))

    def divisor(self, *sizes: int) -> int:
        """A number that divides all ``sizes``."""
        return self.pick([n for n in range(1, min(sizes) + 1) if all(size % n == 0 for size in sizes)])

    def width(self, most: int = WIDTHS[-1]) -> int:
        """A number of channels."""
        return self.pick([w for w in WIDTHS if w <= most])
