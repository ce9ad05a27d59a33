"""The roofline (Williams, Waterman and Patterson 2009): GFLOP/s over operations a byte, under the machine's limits."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import log10
from pathlib import Path

from coppice.kernels._errors import KernelError
from coppice.kernels.bench.report import BenchReport, Measurement

PALETTE = ("#1f3b57", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#666666", "#1f78b4")
SUFFIXES = (".png", ".html")


@dataclass(frozen=True)
class Line:
    """A limit: its name, which stands at the first of two points."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


def plot(report: BenchReport, suffix: str) -> bytes:
    """A PNG, drawn by matplotlib, or a self-contained HTML page, drawn by plotly.

    Raises:
        KernelError: the suffix is neither, nothing was measured, or what draws it is not installed.
    """
    if not _drawn(report):
        raise KernelError("there is nothing to draw", place="plot", remedy="measure a shape with less than all zeros")
    if suffix not in SUFFIXES:
        raise KernelError(f"there is no {suffix!r}", place="plot", remedy=f"name a file {' or '.join(SUFFIXES)}")
    return _png(report) if suffix == ".png" else _html(report).encode()


def check_plot(path: Path) -> None:
    """Refuse before hours of measuring what :func:`plot` would refuse after them."""
    from importlib.util import find_spec

    if path.suffix not in SUFFIXES:
        raise KernelError(f"there is no {path.suffix!r}", place=str(path), remedy=f"use {' or '.join(SUFFIXES)}")
    needed, extra = ("matplotlib", "bench") if path.suffix == ".png" else ("plotly", "plot")
    if find_spec(needed) is None:
        raise KernelError(f"it needs {needed}", place=str(path), remedy=f'pip install "coppice[{extra}]"')


def _drawn(report: BenchReport) -> list[Measurement]:
    """A logarithm has no place for kernels without an operation."""
    return [m for m in report.measurements if m.operations]


def lines(report: BenchReport) -> list[Line]:
    """The limits, over the range of the measured points: a roof an instruction set, a slope a cache and memory."""
    points = [m.intensity for m in _drawn(report)]
    low, high = min(points) / 2, max(points) * 2
    top = max(report.peaks.gflops.values(), default=0.0)
    found = []
    for name, peak in _merged(report.peaks.gflops.items()):
        found.append(Line(f"{name}: {peak:.0f} GFLOP/s", (high, low), (peak, peak)))
    for name, bandwidth in _merged(_levels(report)):
        end = min(high, top / bandwidth) if top else high
        if end > low:
            found.append(Line(f"{name}: {bandwidth:.0f} GB/s", (low, end), (low * bandwidth, end * bandwidth)))
    return found


def _merged(limits: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbours that are the same within 5 % as one, or their lines and names would lie on each other."""
    found: list[tuple[str, float]] = []
    for name, value in limits:
        if found and abs(value / found[-1][1] - 1) < 0.05:
            found[-1] = f"{found[-1][0]}, {name}", max(value, found[-1][1])
        else:
            found.append((name, value))
    return found


def _levels(report: BenchReport) -> Iterator[tuple[str, float]]:
    """Read bandwidth of arrays that fill half of a cache, and of the largest: of memory, if it is beyond all caches."""
    sizes = {cache.level: cache.size for cache in report.machine.caches}
    for level, size in sorted(sizes.items()):
        yield f"L{level}", report.peaks.bandwidth(size // 2)
    if report.peaks.reads:
        largest = max(report.peaks.reads)
        beyond = not sizes or largest > 2 * max(sizes.values())
        yield "memory" if beyond else f"{largest >> 20} MB", report.peaks.bandwidth(largest)


def _series(report: BenchReport) -> list[tuple[str, str, Sequence[Measurement]]]:
    """(kernel, colour, its measurements)."""
    kernels = dict.fromkeys(m.kernel for m in _drawn(report))
    return [
        (kernel, PALETTE[index % len(PALETTE)], [m for m in _drawn(report) if m.kernel == kernel])
        for index, kernel in enumerate(kernels)
    ]


def _title(report: BenchReport) -> str:
    threads = f"{report.threads} thread{'s' * (report.threads > 1)}"
    return f"{report.machine.cpu}, {threads}, medians of {report.repetitions}"


X, Y = "operations a byte (weight, activations and result, each counted once)", "GFLOP/s"


def _html(report: BenchReport) -> str:
    import plotly.graph_objects as go

    figure = go.Figure()
    for line in lines(report):
        figure.add_trace(
            go.Scatter(x=line.x, y=line.y, name=line.name, mode="lines", line={"color": "#999999"}, showlegend=False)
        )
        figure.add_annotation(
            x=log10(line.x[0]), y=log10(line.y[0]), text=line.name, showarrow=False, yshift=8,
            xanchor="left" if line.x[0] < line.x[1] else "right", font={"size": 10},
        )  # fmt: skip
    for kernel, colour, rows in _series(report):
        text = [html.escape(f"{m.shape.model} {m.shape.layer}, {m.sparsity:.0%} zeros") for m in rows]
        figure.add_trace(
            go.Scatter(
                x=[m.intensity for m in rows], y=[m.gflops for m in rows], name=html.escape(kernel), text=text,
                mode="markers", marker={"color": colour},
                hovertemplate="%{text}<br>%{y:.1f} GFLOP/s, %{x:.2f} operations a byte",
            )
        )  # fmt: skip
    figure.update_xaxes(type="log", title_text=X)
    figure.update_yaxes(type="log", title_text=Y)
    figure.update_layout(title=html.escape(_title(report)), template="plotly_white", height=800)
    page: str = figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})
    return page


def _png(report: BenchReport) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.add_subplot()
    for line in lines(report):
        axes.plot(line.x, line.y, color="#999999", linewidth=1)
        axes.annotate(
            line.name, (line.x[0], line.y[0]), xytext=(0, 3), textcoords="offset points", fontsize=8,
            ha="left" if line.x[0] < line.x[1] else "right",
        )  # fmt: skip
    for index, (kernel, colour, rows) in enumerate(_series(report)):
        marker = "osD^v"[index // len(PALETTE) % 5]
        axes.scatter(
            [m.intensity for m in rows], [m.gflops for m in rows], color=colour, marker=marker, s=18, label=kernel
        )
    axes.set(xscale="log", yscale="log", xlabel=X, ylabel=Y, title=_title(report))
    axes.grid(which="both", linewidth=0.3)
    axes.legend(
        loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False, ncols=1 + len(axes.collections) // 35
    )
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    return drawn.getvalue()
