"""Measures the kernels and writes the tables of docs/kernels.md: goals beside what is reached, by kernel and by model;
and of docs/kernels_layers.md: every layer.

python benchmarks/kernels.py [--models mobilenet_v1 ...] [--sparsities 0.9 ...] [--repetitions 30] [--threads 1]
                             [--kernels GLOB ...] [--json FILE] [--docs docs/kernels.md]

What --json names is written after every model, and read first: a run that was stopped goes on, and one that is complete
measures nothing and only writes the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from page import put, table

from coppice.kernels._variants import pick
from coppice.kernels.bench import (
    BASELINE,
    EVERY,
    TYPICAL,
    BenchReport,
    Measurement,
    Peaks,
    Shape,
    load_shapes,
    run_bench,
)
from coppice.kernels.bench.machine import Cache, Machine
from coppice.kernels.bench.plot import plot
from coppice.kernels.bench.statistics import PAIRED, differs, paired

#: Beside the page.
ROOFLINE, LAYERS = "kernels_roofline.png", "kernels_layers.md"
#: Whole models, but without the hour that matrices of 7 billion parameters take.
MODELS = [name for name in dict.fromkeys(s.model for s in load_shapes()) if not name.startswith("llama_7b")]
MODELS.append("llama_7b_decode/attention")


def is_matrix(shape: Shape) -> bool:
    return shape.window is None and shape.pixels > 1


def is_image(shape: Shape) -> bool:
    return is_matrix(shape) and shape.convolution is not None


def is_3x3(shape: Shape) -> bool:
    return shape.convolution is not None and shape.convolution.kernel == (3, 3)


def is_vector(shape: Shape) -> bool:
    """Of at least 256 K weights: smaller ones are in the first-level cache, and a call is half of their time."""
    return shape.pixels == 1 and shape.rows * shape.cols >= 1 << 18


@dataclass(frozen=True)
class Goal:
    """A kernel, what it is compared with, on which shapes, and how many times as fast it should be by sparsity."""

    text: str
    kernel: str
    against: str
    shapes: Callable[[Shape], bool]
    goals: dict[float, float]
    isa: str | None = None  # the row is for a run whose highest instruction set is this one

    def of(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [shape for shape in shapes if self.shapes(shape)]


UNSTRUCTURED_16 = {0.5: 4.5, 0.7: 7, 0.8: 10.5, 0.9: 17, 0.95: 26}
BLOCKS_16 = {0.5: 4.8, 0.7: 8.2, 0.8: 11.5, 0.9: 21, 0.95: 36}

#: The layer on which goals for images were set.
SET_ON = "256x256x784"
#: The goals of 16 bits were set on a CPU with AVX512-FP16 and AMX, the AVX2 goals against peers limited to AVX2.
GOALS = (
    Goal("fp32 unstructured", "csr/fp32", BASELINE, is_image, {0.5: 1.3, 0.7: 2.2, 0.8: 3.2, 0.9: 5.8, 0.95: 10}),
    Goal(
        "fp32 unstructured, straight-line code", "code/fp32", BASELINE, is_image,
        {0.5: 1.9, 0.7: 3, 0.8: 4.3, 0.9: 7, 0.95: 12},
    ),
    Goal("fp32 4x1", "4x1/fp32", BASELINE, is_image, {0.5: 2.0, 0.7: 3.5, 0.8: 5.2, 0.9: 9, 0.95: 16}),
    Goal("fp16 unstructured", "csr/fp16@fp16", BASELINE, is_image, UNSTRUCTURED_16, "avx512_fp16"),
    Goal("fp16 4x1", "4x1/fp16@fp16", BASELINE, is_image, BLOCKS_16, "avx512_fp16"),
    Goal("16 bits unstructured: bf16 products", "csr/bf16@bf16", BASELINE, is_image, UNSTRUCTURED_16, "avx512_bf16"),
    Goal("16 bits 4x1: bf16 products", "4x1/bf16@bf16", BASELINE, is_image, BLOCKS_16, "avx512_bf16"),
    Goal("fp32 unstructured, AVX2", "csr/fp32", BASELINE, is_image, {0.7: 2.5, 0.8: 3.6, 0.9: 6.5, 0.95: 11.5}, "avx2"),
    Goal("fp32 3x3 convolution", "csr/fp32", BASELINE, is_3x3, {0.9: 5}),
    Goal("16 bits 3x3 convolution: bf16 products", "csr/bf16@bf16", BASELINE, is_3x3, {0.9: 13}, "avx512_bf16"),
    Goal("dense fp16", "dense/fp16@fp16", BASELINE, is_matrix, dict.fromkeys(EVERY, 2.4), "avx512_fp16"),
    Goal("dense 16 bits: bf16", "dense/bf16@bf16", BASELINE, is_matrix, dict.fromkeys(EVERY, 2.4), "avx512_bf16"),
    Goal("dense bf16 products over torch's", "dense/bf16@bf16", "torch/dense/bf16", is_matrix, {}),
    Goal("dense int8 products over torch's", "dense/int8xfp32@int8", "torch/dense/int8", is_matrix, {}),
    Goal("fp32 unstructured over torch CSR (MKL)", "csr/fp32", "torch/csr/fp32", is_matrix, {0.9: 1.8}),
    Goal("int8, one token, over torch's dense int8", "sell/int8xfp32@int8", "torch/dense/int8", is_vector, {0.9: 5}),
    Goal("int8, one token, over our dense int8", "sell/int8xfp32@int8", "dense/int8xfp32@int8", is_vector, {0.9: 5}),
    Goal("fp16 16x1, one token, over dense bf16", "16x1/fp16", "torch/dense/bf16", is_vector, {0.9: 20}),
)  # fmt: skip


class Results:
    """The measurements of a report by shape, sparsity and kernel."""

    def __init__(self, report: BenchReport) -> None:
        self.report = report
        self.found = {(m.shape, m.sparsity, m.kernel): m for m in report.measurements}
        self.shapes = list(dict.fromkeys(m.shape for m in report.measurements))
        self.sparsities = sorted(dict.fromkeys(m.sparsity for m in report.measurements))
        self.percent = [f"{sparsity:.0%}" for sparsity in self.sparsities]

    def rounds(self, shape: Shape, sparsity: float, kernel: str, against: str) -> np.ndarray | None:
        """Times of ``against`` over times of the kernel, round by round; None where one of them did not run."""
        one, other = (self.found.get((shape, sparsity, name)) for name in (kernel, against))
        if one is None or other is None:
            return None
        return np.divide(one.ratios, other.ratios)

    def mean(self, shapes: Sequence[Shape], sparsity: float, kernel: str, against: str) -> float | None:
        """Geometric mean over shapes of the median ratio."""
        ratios = [found for s in shapes if (found := self.rounds(s, sparsity, kernel, against)) is not None]
        return float(np.exp(np.mean(np.log([np.median(r) for r in ratios])))) if ratios else None

    def total(self, shapes: Sequence[Shape], sparsity: float, kernel: str) -> float | None:
        """Microseconds of all layers of a model; None where one was not measured."""
        found = [self.found.get((shape, sparsity, kernel)) for shape in shapes]
        times = [shape.count * m.microseconds for shape, m in zip(shapes, found, strict=True) if m is not None]
        return sum(times) if len(times) == len(shapes) else None


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def cell(ratios: np.ndarray | None) -> str:
    """Median with its 10th and 90th percentiles; ``=`` before what may as well be 1."""
    if ratios is None:
        return "-"
    p10, median, p90 = np.percentile(ratios, (10, 50, 90))
    return f"{'' if differs(float(median), paired(ratios)) else '= '}{median:.1f} ({p10:.1f}-{p90:.1f})"


def head(report: BenchReport) -> str:
    """What the numbers were made from."""
    machine = report.machine
    sizes = [size for size in (1 << 14, 1 << 18, 1 << 23, 1 << 27) if size in report.peaks.reads]
    facts = [
        f"{machine.cpu}, kernels up to {machine.isa}",
        ", ".join(f"{name} {installed}" for name, installed in report.versions.items()),
        f"{report.threads} thread{'s' * (report.threads > 1)}, {report.repetitions} rounds, {report.clock} time",
        f"CPU share {report.cpu_share:.2f}",
        "peaks in GFLOP/s: " + ", ".join(f"{name} {peak:.0f}" for name, peak in report.peaks.gflops.items()),
        "reading in GB/s: " + ", ".join(f"{size >> 10} KB {report.peaks.bandwidth(size):.0f}" for size in sizes),
        "left out: " + ("; ".join(f"{name} ({why})" for name, why in report.left_out.items()) or "nothing"),
    ]
    return (
        ". ".join(facts) + ".\n\nFigures are times of the baseline over times of the kernel, medians with the 10th and "
        f"90th percentile. `=`: no significant difference (that would be: {PAIRED}).\n"
    )


def named(against: str, prefix: str) -> str:
    """What a goal is against may be a kernel of ours too, of this machine's variant."""
    return against if against.count("/") > 1 else prefix + against


def goals_of(results: Results) -> list[Goal]:
    """Those that the measured layers and the instruction set have something to say about."""
    isa = results.report.machine.isa
    return [goal for goal in GOALS if goal.of(results.shapes) and goal.isa in (None, isa)]


def goals(results: Results, prefix: str) -> str:
    """Reached beside its goal: geometric means over the layers that a row is about, and in brackets, where that is one
    of them, on the layer that the goals were set on."""
    rows, first = [], [shape for shape in results.shapes if shape.text == SET_ON]
    for goal in goals_of(results):
        shapes, other, cells = goal.of(results.shapes), named(goal.against, prefix), []
        for sparsity in results.sparsities:
            reached = results.mean(shapes, sparsity, prefix + goal.kernel, other)
            wanted = goal.goals.get(sparsity)
            own = results.mean(goal.of(first), sparsity, prefix + goal.kernel, other)
            cells.append(
                number(reached)
                + ("" if own is None else f" ({number(own)})")
                + ("" if wanted is None else f" / {number(wanted)}")
            )
        rows.append([goal.text, f"`{other}`", str(len(shapes)), *cells])
    return table([f"reached ({SET_ON}) / goal", "over", "layers", *results.percent], rows)


def means(results: Results, kernels: Sequence[str], title: str, suits: Callable[[Shape], bool]) -> str:
    """Geometric means over the shapes that suit, of each kernel that ran on any of them."""
    shapes, baseline = [shape for shape in results.shapes if suits(shape)], results.report.baseline
    rows = []
    for kernel in kernels:
        found = [results.mean(shapes, sparsity, kernel, baseline) for sparsity in results.sparsities]
        if any(found):
            rows.append([f"`{kernel}`", *map(number, found)])
    return table([f"geometric mean over {len(shapes)} {title}", *results.percent], rows)


def models(results: Results, kernels: Sequence[str]) -> str:
    """All layers of a model together: the sum of medians, each as often as its layer occurs."""
    rows = []
    for model, group in groupby(results.shapes, key=lambda shape: shape.model):
        layers = list(group)
        for kernel in kernels:
            totals = [
                [results.total(layers, sparsity, name) for name in (results.report.baseline, kernel)]
                for sparsity in results.sparsities
            ]
            cells = ["-" if dense is None or ours is None else number(dense / ours) for dense, ours in totals]
            rows.append([model, f"`{kernel}`", *cells])
    return table(["all layers of a model", "kernel", *results.percent], rows)


def layers(results: Results, prefix: str) -> Iterator[str]:
    """A table a goal: every layer that it is about, the speed of what it is against, and the ratio with its spread."""
    for goal in goals_of(results):
        rows, other = [], named(goal.against, prefix)
        for shape in goal.of(results.shapes):
            against = results.found.get((shape, results.sparsities[0], other))
            ratios = [results.rounds(shape, sparsity, prefix + goal.kernel, other) for sparsity in results.sparsities]
            speed = "-" if against is None else f"{against.gflops:.0f}"
            rows.append([shape.model, shape.layer, shape.text, speed, *map(cell, ratios)])
        wanted = [f"goal {number(goal.goals.get(sparsity))}" for sparsity in results.sparsities]
        if goal.goals:
            rows.insert(0, ["", "", "", "", *wanted])
        columns = ["model", "layer", "shape", f"`{other}`, GFLOP/s", *results.percent]
        yield f"{goal.text}, `{prefix}{goal.kernel}` over `{other}`:\n\n" + table(columns, rows)


def roofline(report: BenchReport) -> bytes:
    """The kernels of the goals at 90 % zeros, or at the most there is, as a PNG."""
    results = Results(report)
    prefix = f"coppice/{pick('matmul', None).name}/"
    kernels = {report.baseline} | {prefix + goal.kernel for goal in goals_of(results)}
    sparsity = 0.9 if 0.9 in results.sparsities else results.sparsities[-1]
    shown = [m for m in report.measurements if m.kernel in kernels and m.sparsity == sparsity]
    return plot(replace(report, measurements=tuple(shown)), ".png")


def section(report: BenchReport) -> str:
    """Everything between the marks."""
    results = Results(report)
    prefix = f"coppice/{pick('matmul', None).name}/"
    kernels = dict.fromkeys(m.kernel for m in report.measurements if m.kernel != report.baseline)
    ours = [kernel for kernel in kernels if kernel.startswith(prefix)]
    others = [kernel for kernel in kernels if kernel not in ours]
    of_images = list(dict.fromkeys(prefix + goal.kernel for goal in goals_of(results) if goal.shapes is is_image))
    parts = [
        head(report),
        goals(results, prefix),
        f"Every layer of every row: [{LAYERS}]({LAYERS}).\n",
        means(results, [*ours, *others], "layers of more than a pixel", is_matrix),
        means(results, [*ours, *others], "layers of one token", is_vector),
        models(results, of_images),
        f"![roofline]({ROOFLINE})\n",
    ]
    return "\n".join(parts)


def page_of_layers(report: BenchReport) -> str:
    """The whole page."""
    prefix = f"coppice/{pick('matmul', None).name}/"
    return "\n".join(["# Kernels, layer by layer\n", head(report), *layers(Results(report), prefix)])


def read(path: Path) -> BenchReport:
    """What ``BenchReport.to_json`` wrote."""
    held = json.loads(path.read_text(encoding="utf-8"))
    context, shapes = held["context"], {f"{s.model}/{s.layer}/{s.text}": s for s in load_shapes()}
    measurements = []
    for name, group in groupby(held["benchmarks"], key=lambda row: row["run_name"]):
        rows = list(group)
        rounds = [row for row in rows if row["run_type"] == "iteration"]
        (found,) = (row for row in rows if row.get("aggregate_name") == "median")
        shape, _, rest = name.partition("/zeros:")
        sparsity, _, kernel = rest.partition("/")
        microseconds = found[f"{'cpu' if context['clock'] == 'cpu' else 'real'}_time"]
        measurements.append(
            Measurement(
                shape=shapes[shape],
                sparsity=float(sparsity),
                kernel=kernel,
                operations=round(1e3 * found["gflops"] * microseconds),
                traffic=round(1e3 * found["gbytes"] * microseconds),
                iterations=rounds[0]["iterations"],
                wall=tuple(row["real_time"] * 1e-6 for row in rounds),
                cpu=tuple(row["cpu_time"] * 1e-6 for row in rounds),
                ratios=tuple(row["speedup"] for row in rounds),
                clock=context["clock"],
                peak=found["gflops"] / found["peak_share"],
                roof=found["gflops"] / found["roof_share"],
            )
        )
    caches = (Cache(c["level"], c["size"], c["num_sharing"]) for c in context["caches"])
    machine = Machine(context["cpu"], context["num_cpus"], context["architecture"], context["isa"], tuple(caches))
    reads = {int(size): speed for size, speed in context["peaks"]["reads"].items()}
    same = ("baseline", "versions", "date", "threads", "clock", "repetitions", "cpu_share", "left_out")
    return BenchReport(
        machine=machine,
        peaks=Peaks(context["peaks"]["gflops"], reads),
        measurements=tuple(measurements),
        **{name: context[name] for name in same},
    )


def measure(asked: argparse.Namespace) -> BenchReport:
    """Model after model, those left out that ``asked.json`` has."""
    every = {f"{shape.model}/{shape.layer}": shape for shape in load_shapes()}
    report = read(asked.json) if asked.json is not None and asked.json.exists() else None
    for model in asked.models:
        shapes = [shape for name, shape in every.items() if name == model or shape.model == model]
        if not shapes:
            raise SystemExit(f"--models: {model} is none of {', '.join(MODELS)} or of their layers, as MODEL/LAYER")
        held = {(m.shape, m.sparsity) for m in report.measurements} if report else set()
        if held >= {(shape, sparsity) for shape in shapes for sparsity in asked.sparsities}:
            continue
        found = run_bench(
            shapes,
            asked.sparsities,
            asked.kernels,
            repetitions=asked.repetitions,
            threads=asked.threads,
            progress=lambda done, total, what: print(f"{done}/{total} {what}", file=sys.stderr),
        )
        report = found if report is None else joined(report, found)
        if asked.json is not None:
            part = asked.json.with_suffix(".part")
            part.write_text(report.to_json(), encoding="utf-8")
            part.replace(asked.json)
    assert report is not None
    return report


def joined(report: BenchReport, more: BenchReport) -> BenchReport:
    """Both, of one machine and under the same conditions."""
    for name in ("machine", "versions", "baseline", "threads", "repetitions"):
        old, new = getattr(report, name), getattr(more, name)
        if old != new:
            raise SystemExit(f"--json: its {name} is {old}, here it is {new}: name another file")
    return replace(
        report,
        cpu_share=min(report.cpu_share, more.cpu_share),
        left_out={**report.left_out, **more.left_out},
        measurements=report.measurements + more.measurements,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="of kernels/shapes.csv; MODEL/LAYER: one layer")
    parser.add_argument("--sparsities", nargs="+", type=float, default=EVERY)
    parser.add_argument("--kernels", nargs="+", default=TYPICAL, help="names or patterns, as coppice bench takes them")
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="the whole report, as far as it goes; see above")
    parser.add_argument("--docs", type=Path, help="write the tables between the marks of this page")
    asked = parser.parse_args()
    report = measure(asked)
    text = section(report)
    print(text)
    if asked.docs is not None:
        asked.docs.with_name(ROOFLINE).write_bytes(roofline(report))
        asked.docs.with_name(LAYERS).write_text(page_of_layers(report), encoding="utf-8")
        put(asked.docs, "measured", text)


if __name__ == "__main__":
    main()
