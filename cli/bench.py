"""`coppice bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coppice.cli.options import Debug, Json
from coppice.cli.show import emit, line, steps, table, written
from coppice.core.errors import UsageError
from coppice.core.names import unknown_name

if TYPE_CHECKING:
    from coppice.kernels.bench import BenchReport, Comparison, Shape

SUBJECTS = ("kernels",)
QUIET = 0.9
"""The CPU share from which on a run counts as undisturbed."""


def bench(
    what: Annotated[str, typer.Argument(metavar="[WHAT]", help="What to measure: kernels.")] = "kernels",
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shapes",
            metavar="MODEL|RxCxP|RxCxS:kKsT",
            help="Layers of one model, a linear layer such as 256x256x196, or a convolution such as 64x32x56:k3s2; "
            "repeatable.",
        ),
    ] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option("--sparsity", min=0, max=1, metavar="FRACTION", help="Fraction of zeros, say 0.9; repeatable."),
    ] = None,
    kernels: Annotated[
        list[str] | None,
        typer.Option(
            "--kernels",
            metavar="GLOB",
            help="Which take part, say 'coppice/*/4x1/fp32', 'coppice/best/*' or 'torch/*'; repeatable.",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All shapes, sparsities and kernels that no other option narrows: days.")
    ] = False,
    baseline: Annotated[
        str, typer.Option("--baseline", metavar="NAME", help="What speedups are against.")
    ] = "torch/dense/fp32",
    threads: Annotated[int, typer.Option("--threads", min=1, help="For every kernel.")] = 1,
    repetitions: Annotated[
        int, typer.Option("--repetitions", min=1, help="Rounds for each shape and sparsity; 1 is a smoke test.")
    ] = 30,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the report there, as JSON of Google Benchmark's format."),
    ] = None,
    plot: Annotated[
        list[Path] | None,
        typer.Option("--plot", metavar="FILE", help="Draw the roofline there: .png or .html; repeatable."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="OLD NEW", help="Measure nothing, compare two reports of --out."),
    ] = None,
    fail_below: Annotated[
        float | None,
        typer.Option(
            "--fail-below",
            min=0,
            max=1,
            metavar="RATIO",
            help="With --compare: exit code 1 if a kernel has significantly less than this share of its old speed.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time the kernels on real layer shapes, against named peers and against what the machine can do."""
    if what not in SUBJECTS:
        raise unknown_name("benchmark", what, SUBJECTS)
    if fail_below is not None and compare is None:
        raise UsageError("there is nothing to compare", place="--fail-below", remedy="add --compare old.json new.json")
    from coppice.kernels import KernelError

    try:
        if compare is not None:
            _compare(*compare, fail_below, as_json)
            return
        report = _measure(shapes, sparsity, kernels, everything, baseline, threads, repetitions, plot or [])
        _write(report, out, plot or [])
    except KernelError as error:
        raise UsageError(error.fact, place=error.place, remedy=error.remedy) from error
    if as_json:
        emit(report.google())
        return
    _print(report)
    for path in ([] if out is None else [out]) + (plot or []):
        written(path)


def _measure(
    shapes: list[str] | None,
    sparsity: list[float] | None,
    kernels: list[str] | None,
    everything: bool,
    baseline: str,
    threads: int,
    repetitions: int,
    plots: list[Path],
) -> BenchReport:
    with steps() as progress:
        progress("load the kernels", 0.0)
        from coppice.kernels.bench import EVERY, SPARSITIES, TYPICAL, check_plot, load_shapes, run_bench

        for path in plots:
            check_plot(path)
        progress("load the kernels", 1.0)
        return run_bench(
            _shapes(shapes) if shapes else load_shapes() if everything else None,
            sparsity or (EVERY if everything else SPARSITIES),
            kernels or (["*"] if everything else TYPICAL),
            baseline=baseline,
            threads=threads,
            repetitions=repetitions,
            progress=lambda done, total, _: progress("measure", done / total),
        )


def _shapes(given: Sequence[str]) -> list[Shape]:
    """Shapes from ``shapes.csv`` by model, and those written out."""
    from coppice.kernels.bench import load_shapes, parse_shape

    result: list[Shape] = []
    for text in given:
        shape = parse_shape(text)
        result += load_shapes([text]) if shape is None else [shape]
    return result


def _write(report: BenchReport, out: Path | None, plots: list[Path]) -> None:
    from coppice.core.files import write_atomic, write_text
    from coppice.kernels.bench import plot

    if out is not None:
        write_text(out, report.to_json())
    for path in plots:
        drawn = plot(report, path.suffix)
        write_atomic(path, lambda temporary, drawn=drawn: temporary.write_bytes(drawn))  # type: ignore[misc]


def _print(report: BenchReport) -> None:
    machine, peaks = report.machine, report.peaks
    line(f"{machine.cpu}, {machine.cores} cores, {machine.architecture}, kernels up to {machine.isa}")
    line(", ".join(f"{name} {number}" for name, number in report.versions.items()))
    found = ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.gflops.items())
    line(f"peaks in GFLOP/s: {found}")
    reads = ", ".join(f"{size >> 10} KB {peaks.bandwidth(size):.0f}" for size in peaks.reads)
    line(f"read bandwidth in GB/s, by size: {reads}")
    line(
        f"{report.threads} thread{'s' * (report.threads > 1)}, {report.repetitions} rounds, {report.clock} time, "
        f"CPU share {report.cpu_share:.2f}; speedup over {report.baseline}, n.s.: not significant"
    )
    if report.cpu_share < QUIET:
        line("others had the cores as well: expect wide percentiles, and trust no time of several threads")
    for name, why in report.left_out.items():
        line(f"left out: {name}: {why}")
    line()
    rows = report.rows()
    words = ("model", "layer", "shape", "kernel")
    columns = [name if name in words else f"{name}>" for name in (rows[0] if rows else {})]
    table(columns, [list(row.values()) for row in rows])


def _compare(old: Path, new: Path, fail_below: float | None, as_json: bool) -> None:
    from coppice.kernels.bench import compare, read_report

    found = compare(read_report(old), read_report(new))
    slower = [] if fail_below is None else found.slower(fail_below)
    if as_json:
        emit(found.to_dict() | {"slower": [change.name for change in slower]})
    else:
        _print_comparison(found)
        for change in slower:
            line(f"slower: {change.name}: {change.ratio:.3f}")
    if slower:
        raise typer.Exit(1)


def _print_comparison(found: Comparison) -> None:
    for fact, (before, after) in found.context.items():
        line(f"differs: {fact}: {before} -> {after}")
    for name, only in (("old", found.only_old), ("new", found.only_new)):
        if only:
            line(f"only in the {name} report: {len(only)}")
    table(
        ("benchmark", "old us>", "new us>", "times as fast>", "p>"),
        [
            (c.name, f"{c.old:.2f}", f"{c.new:.2f}", f"{c.ratio:.3f}", f"{c.p_value:.0e}" if c.significant else "n.s.")
            for c in found.changes
        ],
    )
    line(f"geometric mean: {found.mean:.3f} times as fast; {found.test}")
