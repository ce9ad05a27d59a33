"""`coppice trace`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from coppice.cli.data import parse_inputs
from coppice.cli.load import load_model
from coppice.cli.options import Debug, Inputs, Json, Model
from coppice.cli.show import emit, number, table, working, written


def trace(
    model: Model,
    inputs: Inputs = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the text there, and print a summary.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Print a summary in place of the text.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the graph of a model: every ATen call with its shape and source line."""
    with working(f"tracing {model}"):
        from coppice.core.files import write_text
        from coppice.core.text import to_text
        from coppice.frontends.torch import trace as trace_model

        graph = trace_model(*load_model(model, parse_inputs(inputs or ())))
        text, facts = to_text(graph), _facts(graph)
        if out is not None:
            write_text(out, text)
    if as_json:
        emit({**facts, **({"text": text} if out is None else {"out": str(out)})})
    elif out is None and not summary:
        sys.stdout.write(text)
    else:
        _print(facts, out)


def _facts(graph: Any) -> dict[str, Any]:
    calls = [node for node in graph.nodes if node.op == "call_function"]
    parameters = graph.parameters()
    return {
        "model": graph.name,
        "calls": len(calls),
        "parameters": {"tensors": len(parameters), "elements": sum(p.numel() for p in parameters.values())},
        "inputs": {node.name: list(node.meta["value"].shape) for node in graph.placeholders() if node.meta["value"]},
        "batch": "dynamic" if graph.batch_dynamic else "fixed",
        "tied": dict(graph.aliases),
        "notes": list(graph.notes),
    }


def _print(facts: dict[str, Any], out: Path | None) -> None:
    parameters = facts["parameters"]
    rows = [
        ("model", facts["model"]),
        ("calls", facts["calls"]),
        ("parameters", f"{number(parameters['elements'])} in {parameters['tensors']} tensors"),
        *(("input", f"{name} {'x'.join(map(str, shape))}") for name, shape in facts["inputs"].items()),
        ("batch size", facts["batch"]),
        *(("tied", f"{alias} is {name}") for alias, name in facts["tied"].items()),
        *(("note", text) for text in facts["notes"]),
    ]
    table(("", ""), rows)
    if out is not None:
        written(out)
