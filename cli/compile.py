"""`coppice compile`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coppice.cli.data import parse_inputs, read_calibration
from coppice.cli.load import load_model
from coppice.cli.options import Debug, Ignore, Inputs, Json
from coppice.cli.show import Say, emit, line, number, share, table, working, written
from coppice.core.errors import CoppiceError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from coppice.api.subnet import Subnet
    from coppice.cli.settings import CompileSettings

SETTINGS, ONNX = "compile.yaml", "model.onnx"
SHOWN = 24
"""Families of the table of widths."""


def compile_model(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="path/to/file.py:function or package.module:function; or in --config."),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget", metavar="METRIC=AMOUNT", help="macs, params or bytes: macs=50%, params=1.2M; repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The folder of the subnet; an older subnet there is replaced."),
    ] = None,
    inputs: Inputs = None,
    score: Annotated[
        str | None, typer.Option("--score", help="How units are ranked: magnitude (default), taylor or random.")
    ] = None,
    ignore: Ignore = None,
    round_to: Annotated[
        int | None, typer.Option("--round-to", metavar="N", help="Widths are multiples of N (default 1).")
    ] = None,
    residual: Annotated[
        str | None,
        typer.Option(
            "--residual",
            help="Units under layer and RMS norms: exact (the norm keeps its count; default), renormalise, freeze.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", metavar="FILE", help="Arrays in .npz or .safetensors: inputs, and targets if any."
        ),
    ] = None,
    reform: Annotated[
        bool | None,
        typer.Option(
            "--reform/--no-reform", help="Fit what stays to the full model on --calibration, by least squares."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Samples in a calibration batch (64).")
    ] = None,
    onnx: Annotated[
        bool | None, typer.Option("--onnx/--no-onnx", help="Write model.onnx into the folder, too.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="The same seed gives the same subnet (0).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings in YAML; the command line goes first.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Cut a model to a budget, prove the result, and save it in a folder."""
    from coppice.cli.settings import compile_settings, parse_budget

    given = {
        "model": model, "budget": parse_budget(budget), "out": out, "input": inputs or None, "score": score,
        "ignore": ignore or None, "round_to": round_to, "residual": residual, "calibration": calibration,
        "reform": reform, "batch": batch, "onnx": onnx, "seed": seed,
    }  # fmt: skip
    settings = compile_settings(config, given)
    _free(settings.out)
    start = time.perf_counter()
    with working("load the model") as say:
        subnet = _compile(settings, say)
    result = _result(subnet, settings, round(time.perf_counter() - start, 2))
    if as_json:
        emit(result)
    else:
        _print(result)


def _compile(settings: CompileSettings, say: Say) -> Subnet:
    """Build, cut and write; the folder appears complete or not at all."""
    from coppice.api.compress import compress
    from coppice.core.files import folder, write_text

    model, inputs = load_model(settings.model, parse_inputs(settings.input, settings.seed))
    if {parameter.is_meta for parameter in model.parameters()} == {True}:
        raise UnsupportedError(
            "the model is on meta tensors: it has no weights to cut",
            place=settings.model,
            remedy="build it with its weights; `coppice explain` needs none",
        )
    data = None
    if settings.reform and settings.calibration is None:
        raise UsageError("it needs data", place="--reform", remedy="give --calibration FILE")
    if settings.calibration is not None:
        data = read_calibration(settings.calibration, model, inputs, settings.batch)
    say("compress")
    subnet = compress(
        model,
        inputs,
        budget=settings.budget,
        ignore=settings.ignore,
        round_to=settings.round_to,
        bounds=settings.bounds,
        residual=settings.residual,
        score=settings.score,
        calibration=data,
        reform=settings.reform,
        progress=lambda what, done: say(f"{what} ({done:.0%} of the layers done)"),
        seed=settings.seed,
    )
    with folder(settings.out) as inside:
        if settings.onnx:
            say("export to ONNX")
            _export(subnet, inside, settings.out)  # first: the receipt records it
        say("save")
        saved = subnet.save(inside / "saved")
        for file in saved.iterdir():
            file.replace(inside / file.name)
        saved.rmdir()
        write_text(inside / SETTINGS, settings.to_yaml())
    return subnet


def _export(subnet: Subnet, inside: Path, out: Path) -> None:
    try:
        subnet.export_onnx(inside / ONNX)
    except CoppiceError as error:
        error.place = str(out / ONNX)
        error.remedy = "nothing was written; compile without --onnx, or report the model"
        raise


def _free(out: Path) -> None:
    """Refuse early what cannot be written, or must not be overwritten: a folder that holds something else."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UsageError(f"{nearest} is a file", place=f"--out {out}", remedy="give another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{nearest} cannot be written to", place=f"--out {out}", remedy="give another folder")
    subnet = (out / "receipt.json").is_file() and (out / "graph.json").is_file()
    if out.resolve() == Path.cwd() or (out.is_dir() and any(out.iterdir()) and not subnet):
        raise UsageError(
            "this folder holds something else than a subnet",
            place=f"--out {out}",
            remedy="give a new folder; only an older subnet is replaced",
        )


def _result(subnet: Subnet, settings: CompileSettings, seconds: float) -> dict[str, Any]:
    receipt = subnet.receipt
    return {
        "model": receipt["model"],
        "out": str(settings.out),
        "files": sorted(p.name for p in settings.out.iterdir()),
        "budget": settings.budget,
        "costs": receipt["costs"],
        "widths": receipt["widths"],
        "equivalence": receipt["equivalence"],
        "module": receipt["module"],
        "onnx": receipt.get("onnx"),
        "recalibrated": receipt.get("recalibrated", []),
        "reformed": receipt.get("reformed"),
        "notes": receipt["notes"],
        "seconds": seconds,
    }


def _print(result: dict[str, Any]) -> None:
    costs = result["costs"].items()
    table(
        (result["model"], "before>", "after>", "of before>"),
        [(m, number(c["before"]), number(c["after"]), share(c["after"], c["before"])) for m, c in costs],
    )
    line()
    widths = list(result["widths"].items())
    table(
        ("family", "units>", "kept>", "of units>"),
        [(name, before, after, share(after, before)) for name, (before, after) in widths[:SHOWN]],
    )
    if len(widths) > SHOWN:
        line(f"and {len(widths) - SHOWN} more, in {Path(result['out']) / 'receipt.json'}")
    line()
    proof = result["equivalence"]
    line(
        f"equivalence: error {proof['error']:.1e}, allowed {proof['tolerance']:.0e} "
        f"({proof['dtype']}, {proof['trials']} inputs, batches of {', '.join(map(str, proof['batches']))})"
    )
    module = result["module"]
    own = module["kind"] == "user"
    line(f"module: your class {module['class']}" if own else f"module: a GraphModule, because {module['why']}")
    if result["onnx"] is not None:
        checked = result["onnx"]["checked"]
        line("ONNX: " + (f"{checked['runtime']} agrees, error {checked['error']:.1e}" if checked else "not checked"))
    if result["recalibrated"]:
        line(f"batch norms measured again: {len(result['recalibrated'])} statistics")
    if result["reformed"] is not None:
        fitted, lacks = len(result["reformed"]["weights"]), result["reformed"]["output"]
        line(
            f"weights fitted to the full model: {fitted}; on the calibration data the output lacks "
            f"{lacks['after']:.1%} of its variance (before: {lacks['before']:.1%})"
        )
    for text in result["notes"]:
        line(f"note: {text}")
    written(result["out"], result["files"], result["seconds"])
