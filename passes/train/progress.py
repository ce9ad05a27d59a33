"""A progress bar for a training loop, on stderr where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Show = Callable[[int, Mapping[str, Any]], None]


@contextmanager
def progress_bar(total: int, done: int, shown: bool) -> Iterator[Show]:
    """Yields what is to be called with the number of steps done and the line that was logged for the last of them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda _, __: None
        return
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, completed=done)

        def show(step: int, line: Mapping[str, Any]) -> None:
            bar.update(task, completed=step, description=described(line) if line else None)

        yield show


def described(line: Mapping[str, Any]) -> str:
    """``loss 0.3142 · zero 12 of 48``: the user's own numbers, then what was reached."""
    own = {k: v for k, v in line.items() if k not in ("step", "lr", "seconds", "cost", "target", "redundant", "zero")}
    parts = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in own.items()]
    if line.get("redundant"):
        parts.append(f"zero {line['zero']} of {line['redundant']}")
    return " · ".join(parts)
