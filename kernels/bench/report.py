"""What was measured: in Python, as rows of a table, and as JSON in the format of Google Benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from coppice.kernels.bench.machine import Machine
from coppice.kernels.bench.peaks import Peaks
from coppice.kernels.bench.shapes import Shape
from coppice.kernels.bench.statistics import PAIRED, differs, paired


@dataclass(frozen=True)
class Measurement:
    """One kernel on one shape at one sparsity.

    Attributes:
        kernel: name of the contender.
        operations: of one call, a product and its sum being two; those with zeros count where they are computed.
        traffic: bytes of weight, activations and result, each counted once.
        iterations: calls in a row that one timing lasts.
        wall, cpu: seconds of a call, round by round: of the clock on the wall, and of the CPU.
        ratios: the baseline's time over this one's in the same round, by the clock that counts.
        clock: the clock that counts, ``cpu`` or ``wall``.
        peak, roof: GFLOP/s of which the machine is capable: at all, and with this traffic (:meth:`Peaks.roof`).
    """

    shape: Shape
    sparsity: float
    kernel: str
    operations: int
    traffic: int
    iterations: int
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    ratios: tuple[float, ...]
    clock: str
    peak: float
    roof: float

    @property
    def name(self) -> str:
        """As in the JSON."""
        return f"{self.shape.model}/{self.shape.layer}/{self.shape.text}/zeros:{self.sparsity:g}/{self.kernel}"

    @cached_property
    def microseconds(self) -> float:
        """The median of one call."""
        return float(np.median(self.cpu if self.clock == "cpu" else self.wall)) * 1e6

    @property
    def gflops(self) -> float:
        """Operations a second."""
        return 1e-3 * self.operations / self.microseconds

    @property
    def gbytes(self) -> float:
        """Traffic a second, in GB/s: what the kernel would need without any cache."""
        return 1e-3 * self.traffic / self.microseconds

    @property
    def peak_share(self) -> float:
        """Of the machine's peak, in fp32 unless the kernel's arithmetic is another; a peer's may go beyond it."""
        return self.gflops / self.peak

    @property
    def roof_share(self) -> float:
        """Of what the machine is capable of with this traffic; 0 where there is nothing to compute."""
        return self.gflops / self.roof if self.roof else 0.0

    @property
    def intensity(self) -> float:
        """Operations a byte of traffic."""
        return self.operations / self.traffic

    @cached_property
    def speedup(self) -> tuple[float, float, float]:
        """Over the baseline in the same round: 10th percentile, median, 90th percentile."""
        p10, median, p90 = np.percentile(self.ratios, (10, 50, 90))
        return float(p10), float(median), float(p90)

    @cached_property
    def p_value(self) -> float:
        """See :func:`paired`; 1 for the baseline."""
        return paired(self.ratios)

    @property
    def significant(self) -> bool:
        """Whether it is faster or slower than the baseline, see :func:`differs`."""
        return differs(self.speedup[1], self.p_value)

    @property
    def cpu_share(self) -> float:
        """Cores that the kernel had while it was timed."""
        return sum(self.cpu) / max(sum(self.wall), 1e-9)


@dataclass(frozen=True)
class BenchReport:
    """What ``run_bench`` measured, with all that is needed to read it.

    ``cpu_share`` is the CPU time of the run over its duration and its threads: well below 1, others had the cores too,
    and the numbers are noisier than they need be. ``left_out`` says which contenders did not run, and why.
    """

    machine: Machine
    peaks: Peaks
    baseline: str
    versions: dict[str, str]
    date: str
    threads: int
    clock: str
    repetitions: int
    cpu_share: float
    left_out: dict[str, str]
    measurements: tuple[Measurement, ...]

    def rows(self) -> list[dict[str, str | int | float]]:
        """One flat dict a measurement, in order, for a table. ``n.s.``: no significant difference from the baseline."""
        return [
            {
                "model": m.shape.model,
                "layer": m.shape.layer,
                "shape": m.shape.text,
                "zeros": f"{m.sparsity:g}",
                "kernel": m.kernel,
                "us": f"{m.microseconds:.2f}",
                "GFLOP/s": f"{m.gflops:.1f}",
                "GB/s": f"{m.gbytes:.1f}",
                "of peak": f"{m.peak_share:.0%}",
                "of roof": f"{m.roof_share:.0%}",
                "speedup": f"{m.speedup[1]:.2f}",
                "p10-p90": f"{m.speedup[0]:.2f}-{m.speedup[2]:.2f}",
                "p": "" if m.kernel == self.baseline else f"{m.p_value:.0e}" if m.significant else "n.s.",
            }
            for m in self.measurements
        ]

    def google(self) -> dict[str, Any]:
        """In the JSON format of Google Benchmark: a context, and every repetition and its aggregates as benchmarks.

        The context lacks ``host_name`` and ``executable``: they would name the machine and a path.
        """
        return {"context": self._context(), "benchmarks": [row for m in self.measurements for row in self._google(m)]}

    def to_json(self) -> str:
        """:meth:`google` as text, a benchmark a line."""
        context = json.dumps(self._context(), indent=1)
        lines = (json.dumps(row) for m in self.measurements for row in self._google(m))
        return '{"context": ' + context + ',\n"benchmarks": [\n' + ",\n".join(lines) + "\n]}\n"

    def _context(self) -> dict[str, Any]:
        machine = self.machine
        return {
            "date": self.date,
            "num_cpus": machine.cores,
            "library_build_type": "release",
            "caches": [
                {"type": "Data" if c.level == 1 else "Unified", "level": c.level, "size": c.size,
                 "num_sharing": c.sharing} for c in machine.caches
            ],
            "format": "coppice-bench/2",
            "cpu": machine.cpu,
            "architecture": machine.architecture,
            "isa": machine.isa,
            "versions": self.versions,
            "baseline": self.baseline,
            "threads": self.threads,
            "clock": self.clock,
            "repetitions": self.repetitions,
            "cpu_share": self.cpu_share,
            "test": PAIRED,
            "peaks": asdict(self.peaks),
            "left_out": self.left_out,
        }  # fmt: skip

    def _google(self, m: Measurement) -> Iterator[dict[str, Any]]:
        common = {"run_name": m.name, "repetitions": len(m.wall), "threads": self.threads, "time_unit": "us"}
        for index, (wall, cpu, ratio) in enumerate(zip(m.wall, m.cpu, m.ratios, strict=True)):
            yield {
                "name": m.name, **common, "run_type": "iteration", "repetition_index": index,
                "iterations": m.iterations, "real_time": wall * 1e6, "cpu_time": cpu * 1e6, "speedup": ratio,
            }  # fmt: skip
        for name, of in AGGREGATES.items():
            row = {
                "name": f"{m.name}_{name}", **common, "run_type": "aggregate", "aggregate_name": name,
                "aggregate_unit": "percentage" if name == "cv" else "time", "iterations": len(m.wall),
                "real_time": of(m.wall) * (1 if name == "cv" else 1e6),
                "cpu_time": of(m.cpu) * (1 if name == "cv" else 1e6),
            }  # fmt: skip
            yield row | (self._counters(m) if name == "median" else {})

    def _counters(self, m: Measurement) -> dict[str, float]:
        return {
            "gflops": m.gflops, "gbytes": m.gbytes, "intensity": m.intensity, "peak_share": m.peak_share,
            "roof_share": m.roof_share, "speedup_p10": m.speedup[0], "speedup": m.speedup[1],
            "speedup_p90": m.speedup[2], "p_value": m.p_value, "cpu_share": m.cpu_share,
        }  # fmt: skip


def _stddev(values: tuple[float, ...]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


#: Aggregates by the names that Google Benchmark gives them.
AGGREGATES: dict[str, Any] = {
    "mean": lambda values: float(np.mean(values)),
    "median": lambda values: float(np.median(values)),
    "stddev": _stddev,
    "cv": lambda values: _stddev(values) / max(float(np.mean(values)), 1e-12),
}
