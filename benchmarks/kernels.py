"""Measures the kernels and prints the tables of docs/kernels.md.

python benchmarks/kernels.py [--models mobilenet_v1 ...] [--sparsities 0.9 ...] [--repetitions 30] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from coppice.kernels.bench import SPARSITIES, BenchReport, Measurement, load_shapes, run_bench


def cell(measurement: Measurement) -> str:
    return f"{measurement.speedup:.1f} ({measurement.speedup_p10:.1f}-{measurement.speedup_p90:.1f})"


def table(head: list[str], rows: list[list[str]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(row), "|")
    print()


def print_tables(report: BenchReport) -> None:
    machine, versions = report.machine, ", ".join(f"{name} {number}" for name, number in report.versions.items())
    print(f"{machine.cpu}, up to {machine.isa}; {versions}; {report.threads} thread, {report.repetitions} repetitions,")
    print(f"CPU share {report.cpu_share:.2f}. Times of `{report.baseline}` over times of the kernel.\n")
    sparsities = list(dict.fromkeys(m.sparsity for m in report.measurements))
    percent = [f"{sparsity:.0%}" for sparsity in sparsities]
    found = {(m.shape, m.sparsity, m.kernel): m for m in report.measurements}
    shapes = list(dict.fromkeys(m.shape for m in report.measurements))
    best = report.default_kernel

    kernels = list(dict.fromkeys(m.kernel for m in report.measurements))
    means = []
    for kernel in kernels[1:]:
        logs = [[np.log(found[s, p, kernel].speedup) for s in shapes if s.pixels > 1] for p in sparsities]
        means.append([kernel, *(f"{np.exp(np.mean(column)):.2f}" for column in logs)])
    table(["geometric mean over layers", *percent], means)

    totals = []
    for model in dict.fromkeys(shape.model for shape in shapes):
        layers = [shape for shape in shapes if shape.model == model]
        dense, ours = (
            [sum(s.count * found[s, p, kernel].microseconds for s in layers) for p in sparsities]
            for kernel in (report.baseline, best)
        )
        totals.append([model, *(f"{a / b:.1f}" for a, b in zip(dense, ours, strict=True))])
    table([f"all layers of a model, {best}", *percent], totals)

    per_layer = [
        [
            s.model,
            s.layer,
            f"{s.rows} x {s.cols} x {s.pixels}",
            f"{found[s, sparsities[0], report.baseline].gflops:.0f}",
        ]
        + [cell(found[s, p, best]) for p in sparsities]
        for s in shapes
    ]
    table(["model", "layer", "rows x cols x pixels", "dense GFLOP/s", *percent], per_layer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="those of kernels/shapes.csv; all by default")
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--json", type=Path, help="where to write the whole report")
    asked = parser.parse_args()
    report = run_bench(
        load_shapes(asked.models),
        asked.sparsities,
        asked.repetitions,
        progress=lambda done, total, what: print(f"{done}/{total} {what}", file=sys.stderr),
    )
    if asked.json is not None:
        asked.json.write_text(report.to_json(), encoding="utf-8")
    print_tables(report)


if __name__ == "__main__":
    main()
