"""`coppice bench`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coppice.cli.options import Debug, Json
from coppice.cli.show import emit, line, steps, table, written
from coppice.core.errors import UsageError
from coppice.core.names import unknown_name

if TYPE_CHECKING:
    from coppice.kernels.bench import BenchReport, Shape

SUBJECTS = ("kernels",)


def bench(
    what: Annotated[str, typer.Argument(metavar="[WHAT]", help="What to measure: kernels.")] = "kernels",
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shapes", metavar="MODEL|RxCxP", help="Layers of one model, or a shape such as 256x256x196; repeatable."
        ),
    ] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option("--sparsity", min=0, max=1, metavar="FRACTION", help="Fraction of zeros, say 0.9; repeatable."),
    ] = None,
    repetitions: Annotated[
        int, typer.Option("--repetitions", min=1, help="Rounds for each shape and sparsity; 1 is a smoke test.")
    ] = 30,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the report there, as JSON.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time the kernels on real layer shapes, against named peers, on one thread."""
    if what not in SUBJECTS:
        raise unknown_name("benchmark", what, SUBJECTS)
    with steps() as progress:
        progress("load the kernels", 0.0)
        from coppice.core.files import write_text
        from coppice.kernels import KernelError
        from coppice.kernels.bench import SPARSITIES, run_bench

        progress("load the kernels", 1.0)
        try:
            report = run_bench(
                _shapes(shapes),
                tuple(sparsity) if sparsity else SPARSITIES,
                repetitions,
                lambda done, total, _: progress("measure", done / total),
            )
        except KernelError as error:
            raise UsageError(error.fact, place=error.place, remedy=error.remedy) from error
        if out is not None:
            write_text(out, report.to_json())
    if as_json:
        emit(json.loads(report.to_json()))
    else:
        _print(report, out)


def _shapes(given: Sequence[str] | None) -> list[Shape] | None:
    """Shapes from ``shapes.csv`` by model, and those written out; None: all of the file."""
    from coppice.kernels.bench import Shape, load_shapes

    if not given:
        return None
    result: list[Shape] = []
    for text in given:
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
        if found is None:
            result += load_shapes([text])
            continue
        rows, cols, pixels = map(int, found.groups())
        if not rows * cols * pixels:
            raise UsageError(
                "a size is zero", place=f"--shapes {text}", remedy="write rows x columns x pixels: 64x64x196"
            )
        result.append(Shape("given", text, rows, cols, pixels, 1))
    return result


def _print(report: BenchReport, out: Path | None) -> None:
    machine = report.machine
    line(f"{machine.cpu}, {machine.cores} cores, {machine.architecture}, kernels up to {machine.isa}")
    line(
        f"{report.threads} thread, {report.repetitions} rounds, speed against {report.baseline}; "
        f"calls take {report.default_kernel}"
    )
    line()
    rows = report.rows()
    columns = [name if isinstance(value, str) else f"{name}>" for name, value in (rows[0] if rows else {}).items()]
    table(columns, [list(row.values()) for row in rows])
    if out is not None:
        line()
        written(out)
