"""The measuring itself: contenders checked, then timed in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._errors import KernelError
from coppice.kernels._pool import Pool
from coppice.kernels.bench.contenders import TYPICAL, Contender, Prepared, Setting, select
from coppice.kernels.bench.machine import pinned, this_machine, versions
from coppice.kernels.bench.peaks import Peaks, measure_peaks
from coppice.kernels.bench.problem import Problem
from coppice.kernels.bench.report import BenchReport, Measurement
from coppice.kernels.bench.runtimes import absent
from coppice.kernels.bench.shapes import Shape, load_shapes

#: What speedups are against: fp32 ``torch.mm`` or ``conv2d`` on the same weight with its zeros.
BASELINE = "torch/dense/fp32"
#: Measured unless others are asked for; EVERY is for the patient.
SPARSITIES = (0.5, 0.8, 0.9)
EVERY = (0.5, 0.7, 0.8, 0.9, 0.95)
#: Seconds that one timing lasts at least; shorter calls are repeated within it.
SHORTEST = 2e-4

Progress = Callable[[int, int, str], None]


def run_bench(
    shapes: Sequence[Shape] | None = None,
    sparsities: Sequence[float] = SPARSITIES,
    kernels: Sequence[str] = TYPICAL,
    *,
    baseline: str = BASELINE,
    repetitions: int = 30,
    threads: int = 1,
    progress: Progress | None = None,
) -> BenchReport:
    """Measures the machine's peaks, then contenders on every shape and sparsity.

    All contenders of one shape and sparsity take turns in one process, in a new order each round, so that heat and
    neighbours touch them alike. One thread is timed by its CPU clock, which stands still while others have the core;
    several by the clock on the wall. Each contender is compared with fp64 first and called once before each timing, so
    caches are warm. Our own kernels share the work through a ``Pool``, the peers as they do.

    Args:
        shapes: None: the samples among ``shapes.csv``.
        sparsities: fractions of zeros, 0 .. 1; the same numbers on every run.
        kernels: names or patterns, see ``select``.
        baseline: the contender that speedups are against.
        repetitions: rounds per shape and sparsity, at least 1.
        threads: for every contender, at least 1.
        progress: called with (done, total, what comes next) before each shape and sparsity.

    Raises:
        KernelError: an argument is out of range, or one of our kernels or the baseline is wrong: then there is no point
            in its speed. A peer that is wrong or fails is left out, and the report says so.
    """
    for name, value in (("repetitions", repetitions), ("threads", threads)):
        if value < 1:
            raise KernelError(f"{value} is less than 1", place=name, remedy="use 30 repetitions for numbers to publish")
    for sparsity in sparsities:
        if not 0 <= sparsity <= 1:
            raise KernelError(f"{sparsity} is not in 0 .. 1", place="sparsities", remedy="0.9 means 90 % zeros")
    if shapes is None:
        shapes = [shape for shape in load_shapes() if shape.sample]
    rows = select(kernels, baseline)
    todo = [(shape, sparsity) for shape in shapes for sparsity in sparsities]
    left_out = {f"{name}/*": "not installed" for name in absent()}
    measurements: list[Measurement] = []
    with ExitStack() as stack:
        stack.enter_context(pinned(threads))
        pool = Pool(threads) if threads > 1 else None
        if pool is not None:
            stack.callback(pool.close)
        if progress is not None:
            progress(0, len(todo), "peaks of the machine")
        peaks = measure_peaks(threads)
        begin = time.perf_counter(), time.process_time()
        for done, (shape, sparsity) in enumerate(todo):
            if progress is not None:
                progress(done, len(todo), f"{shape.model} {shape.layer}, {sparsity:.0%} zeros")
            round_ = Turns(Problem(shape, sparsity), Setting(threads, pool), peaks, left_out)
            measurements += round_.measure([row for row in rows if row.suits(shape)], repetitions)
    duration, busy = time.perf_counter() - begin[0], time.process_time() - begin[1]
    return BenchReport(
        machine=this_machine(),
        peaks=peaks,
        baseline=baseline,
        versions=versions(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        threads=threads,
        clock=_clock(threads),
        repetitions=repetitions,
        cpu_share=round(busy / duration / threads, 3),
        left_out=left_out,
        measurements=tuple(measurements),
    )


def _clock(threads: int) -> str:
    return "cpu" if threads == 1 else "wall"


class Turns:
    """The contenders of one problem; those that fail go to ``left_out``."""

    def __init__(self, problem: Problem, setting: Setting, peaks: Peaks, left_out: dict[str, str]) -> None:
        self.problem, self.setting, self.peaks, self.left_out = problem, setting, peaks, left_out

    def measure(self, contenders: Sequence[Contender], repetitions: int) -> list[Measurement]:
        """One measurement each, the first contender being the baseline."""
        ready = {row: made for row in contenders if (made := self._prepared(row, row is contenders[0]))}
        calls = [made.call for made in ready.values()]
        times = _times(calls, repetitions, self.problem.shape.rows, self.setting.threads)
        counting = times[1 if _clock(self.setting.threads) == "cpu" else 0]
        found = []
        for index, (row, made) in enumerate(ready.items()):
            operations = 2 * self.problem.shape.pixels * (
                self.problem.shape.rows * self.problem.shape.cols if row.dense else self.problem.entries(row.height)
            )  # fmt: skip
            found.append(
                Measurement(
                    shape=self.problem.shape,
                    sparsity=self.problem.sparsity,
                    kernel=row.name,
                    operations=operations,
                    traffic=made.traffic,
                    iterations=int(times[2][index]),
                    wall=tuple(times[0][index].tolist()),
                    cpu=tuple(times[1][index].tolist()),
                    ratios=tuple((counting[0] / counting[index]).tolist()),
                    clock=_clock(self.setting.threads),
                    peak=self.peaks.peak(row.peak),
                    roof=self.peaks.roof(row.peak, operations / made.traffic, made.traffic),
                )
            )
        return found

    def _prepared(self, row: Contender, needed: bool) -> Prepared | None:
        """Ready and right, or None and a line in ``left_out``."""
        try:
            made = row.prepare(self.problem, self.setting)
            made.call()
            result = np.asarray(made.result())
            kinds = row.weight, row.activation, row.arithmetic
            error = self.problem.error(result, row.height, *kinds, made.rounding)
            fact = f"wrong result: {error:.3g} times its bound" if error > 1 else ""
            if not (fact or row.ours or needed) and self.setting.threads == 1 and _hidden(made):
                fact = "it works in threads of its own"
        except Exception as error:
            if row.ours or needed:
                raise
            fact = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        if not fact:
            return made
        if row.ours or needed:
            raise KernelError(fact, place=row.name, remedy="run the check program, and report this")
        self.left_out.setdefault(row.name, f"{fact} ({self.problem.shape.model} {self.problem.shape.layer})")
        return None


def _hidden(made: Prepared) -> bool:
    """Whether a call works in threads of its own, which the clock of this one would not see.

    Threads of others may be busy for a moment, so the least of five is what the call itself costs.
    """
    seen, elsewhere = [], []
    for _ in range(5):
        thread, process = time.thread_time(), time.process_time()
        made.call()
        thread, process = time.thread_time() - thread, time.process_time() - process
        seen.append(thread)
        elsewhere.append(process - thread)
    return min(elsewhere) > max(1e-5, min(seen))


def turns(calls: Sequence[Callable[[], object]], repetitions: int, threads: int) -> NDArray[Any]:
    """Seconds of a call, [calls, repetitions]: CPU time of one thread, or time on the wall of several."""
    wall, cpu, _ = _times(calls, repetitions, len(calls), threads)
    found: NDArray[Any] = cpu if _clock(threads) == "cpu" else wall
    return found


def _times(
    ready: Sequence[Callable[[], object]], repetitions: int, seed: int, threads: int
) -> tuple[NDArray[Any], ...]:
    """Seconds of a call, [contenders, repetitions], on the wall and of the CPU, and calls in a timing [contenders]."""
    cpu_clock = time.thread_time if threads == 1 else time.process_time
    wall, cpu = np.empty((2, len(ready), repetitions))
    once = (min(_time(call, 1, cpu_clock)[1] for _ in range(2)) for call in ready)
    inner = np.array([ceil(SHORTEST / max(1e-7, seconds)) for seconds in once])
    random = np.random.default_rng(seed)
    gc.collect()
    gc.disable()
    try:
        for repetition in range(repetitions):
            for index in random.permutation(len(ready)):
                wall[index, repetition], cpu[index, repetition] = _time(ready[index], inner[index], cpu_clock)
    finally:
        gc.enable()
    return wall, cpu, inner


def _time(call: Callable[[], object], inner: int, cpu_clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a call on the wall and of the CPU, caches warm."""
    call()
    wall, cpu = time.perf_counter(), cpu_clock()
    for _ in range(inner):
        call()
    cpu, wall = cpu_clock() - cpu, time.perf_counter() - wall
    return wall / inner, max(cpu, 1e-9) / inner
