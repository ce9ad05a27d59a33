"""Measures ``matmul`` on real layer shapes against named peers; ``coppice bench`` prints what ``run_bench`` returns.

    report = run_bench(load_shapes(["mobilenet_v1"]), (0.9,), ["coppice/best/*/fp32", "torch/*"])

One module a concern: ``shapes`` (layers of real models), ``problem`` (the numbers), ``contenders``, ``peers`` and
``runtimes`` (who takes part), ``peaks`` (what the machine can do), ``measure``, ``statistics``, ``report``, ``plot``,
``compare``.
"""

from coppice.kernels.bench.compare import Change, Comparison, compare, read_report
from coppice.kernels.bench.contenders import TYPICAL, Contender, contenders, select
from coppice.kernels.bench.measure import BASELINE, EVERY, SPARSITIES, run_bench
from coppice.kernels.bench.peaks import Peaks, measure_peaks
from coppice.kernels.bench.plot import check_plot, plot
from coppice.kernels.bench.report import BenchReport, Measurement
from coppice.kernels.bench.shapes import Convolution, Shape, load_shapes, parse_shape

__all__ = [
    "BASELINE",
    "EVERY",
    "SPARSITIES",
    "TYPICAL",
    "BenchReport",
    "Change",
    "Comparison",
    "Contender",
    "Convolution",
    "Measurement",
    "Peaks",
    "Shape",
    "check_plot",
    "compare",
    "contenders",
    "load_shapes",
    "measure_peaks",
    "parse_shape",
    "plot",
    "read_report",
    "run_bench",
    "select",
]
