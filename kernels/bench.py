"""Measures ``matmul`` on real layer shapes against named peers; ``coppice bench`` prints what this returns.

All kernels of one shape and sparsity take turns in one process on one thread, in a new order each round, so that heat
and neighbours touch them alike. The clock is that thread's CPU time, which stands still while others have the core.
Each kernel is first compared with fp64. Speedups are per round: the dense baseline's time over the kernel's time a
moment apart; their 10th and 90th percentiles are the spread.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._errors import KernelError
from coppice.kernels._matmul import bind
from coppice.kernels._variants import isa, pick, variants
from coppice.kernels._weight import Weight

#: What speedups are against: fp32 ``torch.mm`` on the same matrix with its zeros.
BASELINE = "torch dense"
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
#: Seconds that one timing lasts at least; shorter calls are repeated within it.
SHORTEST = 2e-4


@dataclass(frozen=True)
class Shape:
    """A pointwise or linear layer: weight [rows, cols] times activations [cols, pixels], ``count`` times in a model."""

    model: str
    layer: str
    rows: int
    cols: int
    pixels: int
    count: int


@dataclass(frozen=True)
class Machine:
    """The machine as far as it explains numbers: no name, no paths."""

    cpu: str
    cores: int
    architecture: str
    isa: str


@dataclass(frozen=True)
class Measurement:
    """One kernel on one shape at one sparsity.

    Attributes:
        kernel: ``coppice <variant>`` or a peer's name.
        microseconds: median of one call.
        gflops: 2 * entries * pixels per second; for the dense baseline 2 * rows * cols * pixels.
        speedup, speedup_p10, speedup_p90: over the baseline in the same round: median and percentiles.
    """

    shape: Shape
    sparsity: float
    kernel: str
    microseconds: float
    gflops: float
    speedup: float
    speedup_p10: float
    speedup_p90: float


@dataclass(frozen=True)
class BenchReport:
    """What ``run_bench`` measured, with all that is needed to read it.

    ``cpu_share`` is the CPU time of the run over its duration: well below 1, others had the core too, and the numbers
    are noisier than they need be.
    """

    machine: Machine
    baseline: str
    versions: dict[str, str]
    threads: int
    repetitions: int
    cpu_share: float
    default_kernel: str
    measurements: tuple[Measurement, ...]

    def to_json(self) -> str:
        """The report as JSON, the fields as named here."""
        return json.dumps({"format": "coppice-bench/1", **asdict(self)}, indent=1)

    def rows(self) -> list[dict[str, str | int | float]]:
        """One flat dict a measurement, in order, for a table."""
        return [
            {
                "model": m.shape.model,
                "layer": m.shape.layer,
                "shape": f"{m.shape.rows}x{m.shape.cols}x{m.shape.pixels}",
                "sparsity": m.sparsity,
                "kernel": m.kernel,
                "us": round(m.microseconds, 2),
                "GFLOP/s": round(m.gflops, 1),
                f"x {self.baseline}": round(m.speedup, 2),
                "p10": round(m.speedup_p10, 2),
                "p90": round(m.speedup_p90, 2),
            }
            for m in self.measurements
        ]


def load_shapes(models: Sequence[str] | None = None) -> list[Shape]:
    """The layers of ``shapes.csv``; ``models`` keeps those of some models.

    Raises:
        KernelError: a model is not in the file.
    """
    text = files("coppice.kernels").joinpath("shapes.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    shapes = [
        Shape(r["model"], r["layer"], int(r["rows"]), int(r["cols"]), int(r["pixels"]), int(r["count"])) for r in rows
    ]
    known = dict.fromkeys(shape.model for shape in shapes)
    for model in models or ():
        if model not in known:
            raise KernelError(f"there is no {model!r}", place="models", remedy=f"use some of {', '.join(known)}")
    return [shape for shape in shapes if models is None or shape.model in models]


def run_bench(
    shapes: Sequence[Shape] | None = None,
    sparsities: Sequence[float] = SPARSITIES,
    repetitions: int = 30,
    progress: Callable[[int, int, str], None] | None = None,
) -> BenchReport:
    """Times every available variant of ``matmul`` and the peers: torch dense, torch CSR, scipy CSR; one thread each.

    Args:
        shapes: None: all of ``shapes.csv``.
        sparsities: fractions of zeros, 0 .. 1, exact, at random places; the same numbers on every run.
        repetitions: rounds per shape and sparsity, at least 1.
        progress: called with (done, total, what comes next) before each shape and sparsity.

    Raises:
        KernelError: an argument is out of range, or a kernel is wrong: then there is no point in its speed.
    """
    if repetitions < 1:
        raise KernelError(f"{repetitions} is less than 1", place="repetitions", remedy="use 30 for numbers to publish")
    for sparsity in sparsities:
        if not 0 <= sparsity <= 1:
            raise KernelError(f"{sparsity} is not in 0 .. 1", place="sparsities", remedy="0.9 means 90 % zeros")
    todo = [(shape, sparsity) for shape in (load_shapes() if shapes is None else shapes) for sparsity in sparsities]
    measurements: list[Measurement] = []
    begin = time.perf_counter(), time.process_time()
    with _one_thread():
        for done, (shape, sparsity) in enumerate(todo):
            if progress is not None:
                progress(done, len(todo), f"{shape.model} {shape.layer}, {sparsity:.0%} zeros")
            measurements += _measure(shape, sparsity, repetitions)
    duration, busy = time.perf_counter() - begin[0], time.process_time() - begin[1]
    return BenchReport(
        machine=_machine(),
        baseline=BASELINE,
        versions={name: version(name) for name in ("torch", "scipy", "numba", "numpy")},
        threads=1,
        repetitions=repetitions,
        cpu_share=round(busy / duration, 3),
        default_kernel=f"coppice {pick('matmul', None).name}",
        measurements=tuple(measurements),
    )


def _measure(shape: Shape, sparsity: float, repetitions: int) -> list[Measurement]:
    random = np.random.default_rng((shape.rows, shape.cols, shape.pixels, round(sparsity * 1e6)))
    weight = random.standard_normal((shape.rows, shape.cols), np.float32)
    weight.flat[random.permutation(weight.size)[: round(sparsity * weight.size)]] = 0
    x = random.standard_normal((shape.cols, shape.pixels), np.float32)
    calls = _calls(weight, x)
    _verify(calls, weight, x)
    inner = {name: ceil(SHORTEST / max(1e-7, min(_time(call, 1) for _ in range(3)))) for name, call in calls.items()}
    seconds = {name: np.empty(repetitions) for name in calls}
    names = list(calls)
    for repetition in range(repetitions):
        for name in random.permutation(names):
            seconds[name][repetition] = _time(calls[name], inner[name])
    entries = np.count_nonzero(weight)
    found = []
    for name in names:
        ratio = seconds[BASELINE] / seconds[name]
        p10, median, p90 = np.percentile(ratio, (10, 50, 90))
        typical = float(np.median(seconds[name]))
        products = (weight.size if name == BASELINE else entries) * shape.pixels
        found.append(
            Measurement(
                shape=shape,
                sparsity=sparsity,
                kernel=name,
                microseconds=typical * 1e6,
                gflops=2e-9 * products / typical,
                speedup=float(median),
                speedup_p10=float(p10),
                speedup_p90=float(p90),
            )
        )
    return found


Array = NDArray[np.float32]
Call = Callable[[], Array]


def _calls(weight: Array, x: Array) -> dict[str, Call]:
    """Every kernel as a call on prepared buffers that returns its result; the baseline first, then ours, then peers."""
    import torch
    from scipy import sparse

    def dense() -> Array:
        torch.mm(torch_weight, torch_x, out=torch_out)
        return torch_out.numpy()

    def ours(name: str) -> Call:
        out = np.empty((weight.shape[0], x.shape[1]), np.float32)
        run = bind(csr, x, out=out, variant=name)

        def call() -> Array:
            run()
            return out

        return call

    torch_weight, torch_x = torch.from_numpy(weight), torch.from_numpy(x)
    torch_out = torch.empty(weight.shape[0], x.shape[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        torch_csr = torch_weight.to_sparse_csr()
    scipy_csr = sparse.csr_matrix(weight)
    csr = Weight.sparse(weight, pixels=x.shape[1])
    calls: dict[str, Call] = {BASELINE: dense}
    calls |= {f"coppice {v.name}": ours(v.name) for v in variants() if v.primitive == "matmul" and v.available}
    calls["torch csr"] = lambda: (torch_csr @ torch_x).numpy()
    calls["scipy csr"] = lambda: scipy_csr @ x
    return calls


def _verify(calls: dict[str, Call], weight: Array, x: Array) -> None:
    exact = weight.astype(np.float64) @ x
    magnitude = np.abs(weight).astype(np.float64) @ np.abs(x)
    terms = np.count_nonzero(weight, axis=1)[:, None]
    for name, call in calls.items():
        error = np.abs(call() - exact)
        if np.any(error > 2 * terms * np.finfo(np.float32).eps * magnitude):
            fact = f"wrong result: off by {error.max():.3g}"
            raise KernelError(fact, place=name, remedy="run the check program, and report this")


def _time(call: Call, inner: int) -> float:
    begin = time.thread_time()
    for _ in range(inner):
        call()
    return (time.thread_time() - begin) / inner


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _machine() -> Machine:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return Machine(cpu or "unknown", os.cpu_count() or 1, platform.machine(), isa())
