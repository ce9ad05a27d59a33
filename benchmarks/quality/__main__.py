"""Train every arm of a protocol, seed by seed, and write the tables.

    PYTHONPATH=benchmarks python -m quality digits --docs docs/quality.md
    PYTHONPATH=benchmarks python -m quality cifar --docs docs/quality.md

Runs are appended to a journal; a run that is stopped goes on where it was, unless the code or a version has changed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from quality import arms, cifar, digits, report
from quality.images import DATA, ROOT, use_peers
from quality.journal import Journal, stamp, versions
from quality.runner import cells, run
from quality.task import Task


def main() -> int:
    options = _options()
    use_peers()
    missing = {name: why for name, why in arms.absent().items() if name in options.arms}
    for name, why in missing.items():
        print(f"left out: {name} ({why})", file=sys.stderr)
    names = [name for name in options.arms if name not in missing]
    tasks = _tasks(options)
    failures, text = [], []
    for task in tasks:
        journal = Journal(options.journal or ROOT / "out" / "quality" / f"{task.name}.jsonl", stamp(task))
        seeds = options.seeds if options.seeds is not None else task.seeds
        wanted = cells(task, names, seeds, [b for b in task.budgets if b in (options.budgets or task.budgets)])
        if not options.report:
            failures += _run(task, wanted, journal, options.jobs)
        print(report.tables(task, journal.rows.values()))
        text.append(report.section(task, journal.rows.values(), missing, versions()))
        minutes = sum(row["cpu_seconds"] for row in journal.rows.values()) / 60
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    if options.docs:
        recipe = tasks[0].recipe
        head = report.CIFAR if options.protocol == "cifar" else report.DIGITS.format(
            minutes=minutes, trained=digits.TRAINED, steps=recipe.steps, batch=recipe.batch
        )  # fmt: skip
        report.put(options.docs, options.protocol, "\n\n".join([head, *text]))
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quality", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("protocol", choices=("digits", "cifar"))
    parser.add_argument("--arms", nargs="+", choices=arms.ARMS, default=list(arms.ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: all of the protocol")
    parser.add_argument("--budgets", nargs="+", type=float, help="default: all of the protocol")
    parser.add_argument("--nets", nargs="+", choices=("resnet8", "resnet20"), default=["resnet8", "resnet20"])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds cifar10_jpeg.npz")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--journal", type=Path, help="default: out/quality/NAME.jsonl")
    parser.add_argument("--report", action="store_true", help="only write what the journal holds")
    parser.add_argument("--docs", type=Path, help="write the section of this protocol into this page")
    return parser.parse_args()


def _tasks(options: argparse.Namespace) -> list[Task]:
    if options.protocol == "digits":
        return [digits.Digits()]
    known: dict[str, type[cifar.ResNet20]] = {"resnet8": cifar.ResNet8, "resnet20": cifar.ResNet20}
    return [known[name](data=options.data) for name in options.nets]


def _run(task: Task, wanted: list[arms.Cell], journal: Journal, jobs: int) -> list[str]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(task.name, total=None)

        def show(what: str, done: int, of: int) -> None:
            progress.update(bar, description=f"{task.name} {what}", completed=done, total=of)

        return run(task, wanted, journal, jobs=jobs, report=show)


if __name__ == "__main__":
    sys.exit(main())
