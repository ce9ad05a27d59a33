"""`coppice`: the commands, and what becomes of their errors. Light to import: torch waits for its first use."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import coppice
from coppice.cli.bench import bench
from coppice.cli.compile import compile_model
from coppice.cli.demo import demo
from coppice.cli.doctor import doctor
from coppice.cli.explain import explain
from coppice.cli.show import emit, note
from coppice.cli.trace import trace
from coppice.core.errors import BudgetError, CoppiceError, EquivalenceError

INTERRUPTED = 130
PARSING: Any = typer.BadParameter.__mro__[2]
"""ClickException, whose home moves from version to version of typer."""

app = typer.Typer(
    name="coppice",
    help="Compile a neural network into smaller ones that provably compute what the masked network did.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 model not supported, 4 budget out of reach, "
    "5 equivalence check failed, 130 interrupted.",
)
app.command("demo")(demo)
app.command("trace")(trace)
app.command("explain")(explain)
app.command("compile")(compile_model)
app.command("bench")(bench)
app.command("doctor")(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"coppice {coppice.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The entry point: run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command; returns its exit code. Errors go to stderr, and as JSON to stdout too under ``--json``."""
    try:
        result = app(args=list(args), prog_name="coppice", standalone_mode=False)
    except KeyboardInterrupt:
        result = INTERRUPTED
    except Exception as error:  # noqa: BLE001 (nobody above us would say it better)
        if "--debug" in args:
            traceback.print_exc()
        facts = _facts(error)
        if "--json" in args:
            emit({"error": facts})
        _print_error(facts)
        return int(facts["exit_code"])
    if result == INTERRUPTED:
        note("interrupted")
    return result if isinstance(result, int) else 0


def _facts(error: Exception) -> dict[str, Any]:
    """What is known of an error: its kind and exit code, fact, place and remedy, and the numbers it carries."""
    kind, code = type(error).__name__, 1
    facts: dict[str, Any]
    if isinstance(error, CoppiceError):
        facts = {"place": error.place, "fact": error.fact, "remedy": error.remedy}
        code = error.exit_code
        if isinstance(error, BudgetError):
            facts["closest"] = error.closest
        if isinstance(error, EquivalenceError):
            facts["error"] = str(error.error)
    elif isinstance(error, PARSING):
        kind, code = "UsageError", 2
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "coppice"
        facts = {"place": command, "fact": str(error.format_message()), "remedy": f"see {command} --help"}
    elif isinstance(error, OSError) and error.filename is not None:
        kind, code = "UsageError", 2
        facts = {
            "place": str(error.filename),
            "fact": error.strerror or kind,
            "remedy": "name a path that can be used so",
        }
    else:
        first = (str(error).strip().splitlines() or [""])[0]
        remedy = "this is a bug in coppice: run it again with --debug, and report what it prints"
        facts = {"place": "internal error", "fact": f"{kind}: {first}" if first else kind, "remedy": remedy}
    return {"kind": kind, "exit_code": code, **facts}


def _print_error(facts: dict[str, Any]) -> None:
    place = f"{facts['place']}: " if facts["place"] else ""
    note(f"error: {place}{facts['fact']}")
    if "closest" in facts:
        reachable = ", ".join(f"{metric}={value:.0f}" for metric, value in facts["closest"].items())
        note(f"  closest: {reachable}")
    if facts["remedy"]:
        note(f"  remedy: {facts['remedy']}")


if __name__ == "__main__":
    main()
