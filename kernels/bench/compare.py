"""Two reports beside each other: what became faster or slower, and whether that is more than noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coppice.kernels._errors import KernelError
from coppice.kernels.bench.statistics import RUNS, UNPAIRED, differs, unpaired

_MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}
#: Facts that make two reports differ for other reasons than their kernels.
_CONTEXT = ("cpu", "isa", "threads", "clock", "baseline", "versions")


@dataclass(frozen=True)
class Times:
    """All repetitions of one benchmark; ``speedups`` over the baseline of its round, empty where there is none."""

    microseconds: tuple[float, ...]
    speedups: tuple[float, ...]


@dataclass(frozen=True)
class Saved:
    """A report that was read back."""

    context: Mapping[str, Any]
    times: Mapping[str, Times]


@dataclass(frozen=True)
class Change:
    """One benchmark in both reports.

    Attributes:
        old, new: medians in microseconds.
        ratio: how many times as fast the new one is. Where both have a baseline, of the speedups over it: what the
            machine did in the meantime falls out, and the baseline's own ratio is of its times.
        p_value: see :func:`unpaired`, for what the ratio is of.
    """

    name: str
    old: float
    new: float
    ratio: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether it is more than noise, see :func:`differs`."""
        return differs(self.ratio, self.p_value, RUNS)


@dataclass(frozen=True)
class Comparison:
    """What both reports hold, what only one does, and what else is different: a fact to (old, new)."""

    changes: tuple[Change, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    context: Mapping[str, tuple[Any, Any]]

    @property
    def test(self) -> str:
        """What decides whether a change is significant."""
        return UNPAIRED

    @property
    def mean(self) -> float:
        """Geometric mean of the ratios."""
        return float(np.exp(np.mean(np.log([change.ratio for change in self.changes]))))

    def to_dict(self) -> dict[str, Any]:
        """For JSON, the fields as named here."""
        return asdict(self) | {"geometric_mean": self.mean, "test": self.test}

    def slower(self, limit: float) -> list[Change]:
        """Those that are significantly different, and whose ratio is below ``limit``, which is 1 at most."""
        return [change for change in self.changes if change.significant and change.ratio < limit]


def read_report(path: Path) -> Saved:
    """A report of ours, or any other in the JSON format of Google Benchmark that holds its repetitions.

    Raises:
        KernelError: the file is missing, or is something else.
    """
    remedy = "give a file that `coppice bench --out` wrote"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in data["benchmarks"] if row.get("run_type", "iteration") == "iteration"]
        baseline = data["context"].get("baseline")
        found: dict[str, tuple[list[float], list[float]]] = {}
        for row in rows:
            microseconds, speedups = found.setdefault(row["name"], ([], []))
            clock = "real_time" if data["context"].get("clock") == "wall" else "cpu_time"
            microseconds.append(float(row[clock]) * _MICROSECONDS[row["time_unit"]])
            if baseline and "speedup" in row and not row["name"].endswith(f"/{baseline}"):
                speedups.append(float(row["speedup"]))
    except OSError as error:
        raise KernelError(f"it cannot be read: {error.strerror}", place=str(path), remedy=remedy) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        fact = "it is no report in the JSON format of Google Benchmark"
        raise KernelError(fact, place=str(path), remedy=remedy) from error
    return Saved(data["context"], {name: Times(tuple(us), tuple(x)) for name, (us, x) in found.items()})


def compare(old: Saved, new: Saved) -> Comparison:
    """The benchmarks that both reports hold, in the order of the new one.

    Raises:
        KernelError: there are none.
    """
    names = [name for name in new.times if name in old.times]
    if not names:
        raise KernelError(
            "the reports have no benchmark in common", place="compare", remedy="measure the same shapes and kernels"
        )
    differing = {
        fact: (old.context.get(fact), new.context.get(fact))
        for fact in _CONTEXT
        if old.context.get(fact) != new.context.get(fact)
    }
    return Comparison(
        tuple(_change(name, old.times[name], new.times[name], "baseline" not in differing) for name in names),
        tuple(name for name in old.times if name not in new.times),
        tuple(name for name in new.times if name not in old.times),
        differing,
    )


def _change(name: str, old: Times, new: Times, same_baseline: bool) -> Change:
    before, after = float(np.median(old.microseconds)), float(np.median(new.microseconds))
    if same_baseline and old.speedups and new.speedups:
        ratio = float(np.median(new.speedups) / np.median(old.speedups))
        return Change(name, before, after, ratio, unpaired(old.speedups, new.speedups))
    return Change(name, before, after, before / after, unpaired(old.microseconds, new.microseconds))
