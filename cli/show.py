"""What people and programs see: results on stdout, progress and errors on stderr, JSON instead of tables on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

WIDE = 160
"""Columns where stdout is no terminal: nothing is cut to fit a screen that is not there."""

Say = Callable[[str], None]
Steps = Callable[[str, float], None]


def console(error: bool = False) -> Console:
    """A console on stdout or stderr as they are now; names such as ``fc.weight[out]`` are text, never markup."""
    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else WIDE
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def line(text: str = "") -> None:
    """One line of the result."""
    console().print(text, soft_wrap=True)


def emit(data: dict[str, Any]) -> None:
    """The result as one JSON object, the only thing on stdout."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A log line, on stderr."""
    console(error=True).print(text, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table on stdout; columns whose name ends in ``>`` are set to the right."""
    made = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False)
    made.show_header = any(columns)
    for column in columns:
        made.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    console().print(made)


@contextmanager
def working(text: str) -> Iterator[Say]:
    """Say on stderr what is being done, and what next through the result.

    Whatever the user's own code prints meanwhile goes to stderr as well.
    """
    err = console(error=True)
    with redirect_stdout(sys.stderr):
        if not err.is_terminal:
            note(text)
            yield note
            return
        with err.status(Text(text)) as status:
            yield lambda next_text: status.update(Text(next_text))


@contextmanager
def steps() -> Iterator[Steps]:
    """A progress bar on stderr for each of several named steps: call the result with (step, fraction done)."""
    err = console(error=True)
    if not err.is_terminal:
        seen: set[str] = set()

        def plain(step: str, _: float) -> None:
            if step not in seen:
                seen.add(step)
                note(step)

        with redirect_stdout(sys.stderr):
            yield plain
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with redirect_stdout(sys.stderr), Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def draw(step: str, done: float) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=1.0)
            bar.update(tasks[step], completed=done)

        yield draw


def written(path: object, files: Sequence[str] = (), seconds: float | None = None) -> None:
    """The last line: where the result lies, what is in it, how long it took."""
    inside = f": {', '.join(files)}" if files else ""
    line(f"written to {path}{inside}" + ("" if seconds is None else f" (in {seconds:.1f} s)"))


def number(value: float) -> str:
    """``1,234,567``; three digits for what is not whole."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"


def share(part: float, whole: float) -> str:
    """``42.1%``."""
    return f"{100 * part / whole:.1f}%" if whole else "-"
