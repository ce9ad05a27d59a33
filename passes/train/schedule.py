"""The schedule of a training in optimizer steps: warm-up, shrinking, refinement, and how often work is done in each."""

from __future__ import annotations

from dataclasses import dataclass

from coppice.core.errors import UsageError

SAMPLES = 16
"""About how often a stage measures or pushes; on other steps only zeros are held (docs/decisions/0007)."""


@dataclass(frozen=True)
class Schedule:
    """Warm-up takes the steps [0, start), shrinking [start, stop), refinement [stop, steps) and whatever follows."""

    steps: int
    start: int
    stop: int

    @classmethod
    def of(cls, steps: int, start: float, stop: float, place: str) -> Schedule:
        """``start`` and ``stop`` as fractions of ``steps``; `UsageError` where no step is left for shrinking."""
        counts = isinstance(steps, int) and steps >= 3
        if not (counts and 0 <= start < stop <= 1 and int(start * steps) < int(stop * steps)):
            raise UsageError(
                f"steps={steps}, start={start}, stop={stop} leave no step for the penalty",
                place=place,
                remedy="give the number of optimizer steps of the whole training, and 0 <= start < stop <= 1",
            )
        return cls(steps, int(start * steps), int(stop * steps))

    def stage(self, step: int) -> tuple[int, int]:
        """First step of the stage that ``step`` is in, and the step after its last."""
        if step < self.start:
            return 0, self.start
        return (self.start, self.stop) if step < self.stop else (self.stop, max(self.steps, self.stop + 1))

    def stride(self, step: int) -> int:
        """Every how many steps the stage of ``step`` works on units: about `SAMPLES` times, a short stage each step."""
        first, end = self.stage(step)
        return max(1, (end - first) // SAMPLES)
