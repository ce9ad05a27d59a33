"""`coppice demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from coppice.cli.options import Debug, Json
from coppice.cli.show import emit, line, number, share, steps, table, written


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results go.")] = Path("coppice-demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same numbers.")] = 0,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Train for fewer epochs, for a quick look.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a small model once, cut it to 30% of its MACs, check the result and export it."""
    with steps() as progress:
        progress("load torch", 0.0)
        from coppice.api.demo import run_demo

        progress("load torch", 1.0)
        options = {} if epochs is None else {"epochs": epochs}
        summary = run_demo(out, progress=progress, seed=seed, **options)
    if as_json:
        emit({"out": str(out), **summary})
    else:
        _print(out, summary)


def _print(out: Path, summary: dict[str, Any]) -> None:
    rows = summary["rows"]
    full = rows[0]
    columns = ("model", "accuracy>", "params>", "MACs>", "of MACs>", "bytes>", "us/image>", "equivalence error>")
    table(
        columns,
        [
            (
                row["model"],
                f"{row['accuracy']:.2%}",
                number(row["params"]),
                number(row["macs"]),
                share(row["macs"], full["macs"]),
                number(row["bytes"]),
                f"{row['latency_us']:.0f}",
                "-" if row["error"] is None else f"{row['error']:.1e}",
            )
            for row in rows
        ],
    )
    line()
    line(f"ONNX Runtime agrees: accuracy {summary['onnxruntime_accuracy']:.2%} from model.onnx")
    written(out, summary["files"], summary["seconds"])
