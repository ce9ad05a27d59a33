"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="path/to/file.py:function or package.module:function. The function takes no arguments and returns a "
        "torch.nn.Module, or (module, example_inputs).",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="An example input, say 1x3x32x32 or ids=1x12:int64; again for each further input. Needed where the "
        "function returns a module alone.",
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="NAME", help="A layer that keeps all its outputs: a name or a glob; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
