"""`coppice explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coppice.cli.data import parse_inputs
from coppice.cli.load import load_model
from coppice.cli.options import Debug, Ignore, Inputs, Json, Model
from coppice.cli.show import emit, line, table, working, written

if TYPE_CHECKING:
    from coppice.passes.analyze.explain import AxisRow, Explanation


def explain(
    model: Model,
    inputs: Inputs = None,
    ignore: Ignore = None,
    every: Annotated[bool, typer.Option("--all", help="One line for every axis, nothing folded.")] = False,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="Write a picture of the graph there, coloured by family."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say of every parameter axis what can leave with it, or why it is frozen, where, and what would free it."""
    with working(f"analysing {model}"):
        from coppice.core.files import write_text
        from coppice.frontends.torch import trace
        from coppice.passes.analyze.explain import explain as explain_space
        from coppice.passes.space.build import build_space

        graph = trace(*load_model(model, parse_inputs(inputs or ())))
        explanation = explain_space(build_space(graph, ignore=ignore or ()))
        if svg is not None:
            write_text(svg, explanation.svg())
    if as_json:
        emit({**explanation.to_dict(), **({} if svg is None else {"svg": str(svg)})})
    elif every:
        _print_all(explanation)
    else:
        _print(explanation)
    if svg is not None and not as_json:
        written(svg)


def _print(explanation: Explanation) -> None:
    from coppice.passes.analyze.explain import compact, fold, fold_segments

    _print_head(explanation)
    if explanation.families:
        line()
        rows = [
            (
                name,
                size,
                len(group),
                _span([len(f.slices) for f in group]),
                _span_percent([f.saves["macs"] for f in group]),
            )
            for name, size, group in fold(explanation.families)
        ]
        table(("family", "units>", "families>", "tied axes>", "MACs saved alone>"), rows, title="what can leave")
    if explanation.segments:
        line()
        erasable = [
            (name, len(group), _span_percent([s.saves["macs"] for s in group]))
            for name, group in fold_segments(explanation.segments)
        ]
        table(("segment", "segments>", "MACs saved alone>"), erasable, title="what can be erased whole")
    if explanation.frozen():
        line()
        line("what stays")
    for first, rows_of_reason in explanation.reasons():
        _print_reason(first)
        for name in compact(row.label for row in rows_of_reason):
            line(f"    {name}")


def _print_all(explanation: Explanation) -> None:
    _print_head(explanation)
    line()
    table(
        ("axis", "size>", "can leave>", "families, or why not", "source"),
        [
            (row.name, row.size, row.removable, ", ".join(row.families) if row.removable else row.reason, row.source)
            for row in explanation.axes
        ],
    )
    for first, _ in explanation.reasons():
        _print_reason(first)


def _print_head(explanation: Explanation) -> None:
    line(explanation.verdict())
    for text in explanation.notes:
        line(f"note: {text}")
    for alias, name in explanation.tied.items():
        line(f"tied: {alias} is {name}")


def _print_reason(first: AxisRow) -> None:
    line(f"  {first.reason}" + (f" ({first.source})" if first.source else ""))
    line(f"    remedy: {first.remedy}")


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _span_percent(values: list[float]) -> str:
    low, high = (f"{100 * value:.1f}" for value in (min(values), max(values)))
    return f"{low}%" if low == high else f"{low}-{high}%"
