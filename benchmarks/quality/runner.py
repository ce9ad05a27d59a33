"""All cells of a task in worker processes of one thread each; every finished one goes to the journal at once."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from quality import arms
from quality.arms import ARMS, FULL, Cell, Given
from quality.images import use_peers
from quality.journal import Journal, Row
from quality.task import Task, evaluate

Report = Callable[[str, int, int], None]


def cells(task: Task, names: Iterable[str], seeds: Iterable[int], budgets: Iterable[float]) -> list[Cell]:
    """Seed by seed, so that a run that is stopped has whole seeds; the full network once a seed."""
    names = list(names)
    return [
        Cell(arm, 1.0 if arm == FULL else budget, seed)
        for seed in seeds
        for budget in budgets
        for arm in names
        if arm != FULL or budget == task.budgets[0]
    ]


def run(task: Task, wanted: list[Cell], journal: Journal, *, jobs: int, report: Report = lambda *_: None) -> list[str]:
    """Measure what the journal lacks; returns what went wrong, one line a cell.

    Three rounds: the dense networks that cutting arms share (kept beside the journal), the arms, and those that take
    DHSPG's widths.
    """
    folder = journal.path.parent
    todo = [cell for cell in wanted if cell.key not in journal.rows]
    failures: list[str] = []
    done = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_prepare) as pool:
        seeds = sorted({cell.seed for cell in todo if ARMS[cell.arm].needs == "dense"})
        trained = [pool.submit(_dense, task, folder, journal.stamp, seed) for seed in seeds]
        for count, ready in enumerate(as_completed(trained), start=1):
            ready.result()
            report(f"dense networks, {count} of {len(seeds)}", 0, len(todo))
        for late in (False, True):
            futures = {}
            for cell in todo:
                if (ARMS[cell.arm].needs == "dhspg") == late:
                    sizes = _widths(journal, cell) if late else None
                    if late and sizes is None:
                        failures.append(f"{cell.key}: there is no DHSPG run to take the widths from")
                        continue
                    futures[pool.submit(measure, task, cell, folder, journal.stamp, sizes)] = cell
            for future in as_completed(futures):
                done += 1
                error = future.exception()
                if error is not None:
                    failures.append(f"{futures[future].key}: {type(error).__name__}: {error}")
                else:
                    journal.add(future.result())
                report(futures[future].key, done, len(todo))
    return failures


def measure(task: Task, cell: Cell, folder: Path, stamp: str, sizes: dict[str, int] | None = None) -> Row:
    """Run one cell and describe the result. Raises `MissedBudgetError` where its cost is not the one asked for."""
    use_peers()
    dense = None
    if ARMS[cell.arm].needs == "dense":
        _dense(task, folder, stamp, cell.seed)
        dense = torch.load(_file(folder, stamp, cell.seed), weights_only=True)
    given = Given(task, cell, dense, sizes)
    began, cpu = time.perf_counter(), time.process_time()
    model = ARMS[cell.arm].run(given)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    share = arms.check(model, given)
    accuracy, loss = evaluate(model, task.test(cell.seed))
    return {
        "key": cell.key, "arm": cell.arm, "budget": cell.budget, "seed": cell.seed, "accuracy": accuracy,
        "cross_entropy": loss, **share, "widths": arms.widths(model), "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
    }  # fmt: skip


def _prepare() -> None:
    torch.set_num_threads(1)


def _dense(task: Task, folder: Path, stamp: str, seed: int) -> None:
    """Train the dense network of ``seed`` into its file, unless it is there."""
    file = _file(folder, stamp, seed)
    if not file.exists():
        part = file.with_suffix(".part")
        torch.save(arms.dense_state(task, seed), part)
        part.replace(file)


def _file(folder: Path, stamp: str, seed: int) -> Path:
    return folder / f"dense-{stamp}-{seed}.pt"


def _widths(journal: Journal, cell: Cell) -> dict[str, int] | None:
    row = journal.rows.get(Cell("dhspg", cell.budget, cell.seed).key)
    return None if row is None else dict(row["widths"])
