"""Rows to tables: on the terminal, and as sections of docs/quality.md that each protocol rewrites for itself."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

import page
from page import table

from quality.arms import ARMS, FULL, TOLERANCE
from quality.journal import Row
from quality.pairs import compare, mean_and_error
from quality.task import Task

HEAD = """# Quality

How accurate a subnet is at a budget, coppice's arms beside their peers. Within a protocol every arm starts from the
same weights for the same seed, takes the same number of optimisation steps (dense pre-training counted), and ends
between {low:.0%} and 100 % of the budget's MACs, counted by coppice's cost model on a trace of the final network,
whoever made it; a run outside is an error and has no row. Each section was written by the command that it names.
"""

COLUMNS = ("arm", "accuracy", "cross entropy", "MACs", "difference", "95 % interval", "ours better / equal / worse")


def tables(task: Task, rows: Iterable[Row]) -> str:
    """One table per budget: means over the seeds, and differences to the best of our sparse optimizers there."""
    rows = list(rows)
    whole = [row for row in rows if row["arm"] == FULL]
    parts = []
    for budget in task.budgets:
        own = {name: {r["seed"]: r for r in rows if (r["arm"], r["budget"]) == (name, budget)} for name in ARMS}
        own = {name: found for name, found in own.items() if found}
        ours = [name for name in own if ARMS[name].ours]
        if not own:
            continue
        best = max(ours, key=lambda name: mean_and_error(_of(own[name], "accuracy"))[0]) if ours else None
        lines = [_line(name, own[name], own[best] if best and best != name else None) for name in _ranked(own)]
        if whole:
            lines.append(_line(FULL, {row["seed"]: row for row in whole}, None))
        seeds = sorted({seed for found in own.values() for seed in found})
        count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
        parts.append(f"### {task.name}, {budget:.0%} of the MACs, {count}\n\n" + table(COLUMNS, lines))
    return "\n".join(parts) or "Nothing is measured yet.\n"


def _ranked(own: dict[str, dict[int, Row]]) -> list[str]:
    return sorted(own, key=lambda name: -mean_and_error(_of(own[name], "accuracy"))[0])


def _of(found: dict[int, Row], key: str) -> list[float]:
    return [row[key] for row in found.values()]


def _line(name: str, found: dict[int, Row], best: dict[int, Row] | None) -> list[str]:
    accuracy, error = mean_and_error(_of(found, "accuracy"))
    loss, loss_error = mean_and_error(_of(found, "cross_entropy"))
    several = len(found) > 1  # one seed has no error, and no interval
    cells = [
        ARMS[name].title,
        f"{100 * accuracy:.2f}" + (f" ± {100 * error:.2f} %" if several else " %"),
        f"{loss:.3f}" + (f" ± {loss_error:.3f}" if several else ""),
        f"{statistics.mean(_of(found, 'macs')):.2%}",
    ]
    shared = sorted(found.keys() & best.keys()) if best else []
    if not best or not shared:
        return [*cells, "", "", ""]
    pair = compare([best[s]["accuracy"] for s in shared], [found[s]["accuracy"] for s in shared])
    counts = f"{pair.wins} / {pair.ties} / {pair.losses}"
    interval = f"{100 * pair.low:+.2f} .. {100 * pair.high:+.2f}" if len(shared) > 1 else ""
    return [*cells, f"{100 * pair.mean:+.2f}", interval, counts]


DIGITS = """## Digits

`make bench-quality`; training took {minutes:.0f} minutes of one core. scikit-learn's digits made hard: {trained}
training images (another stratified split for every seed), each shifted by up to a pixel and under noise, as in the
test. A residual network of 16 and 32 channels, SGD with Nesterov momentum, {steps} steps of {batch} under one cycle."""

CIFAR = """## CIFAR-10

`make bench-cifar`. The images went through JPEG, so no figure here compares with one on the raw data set. ResNet8 is
MLPerf Tiny's trained network, adapted to these images once; every arm but the one from scratch starts from that, so
those that cut a trained network spend all their steps on fine-tuning. ResNet-20 starts from random weights. Every arm
trains under bfloat16 autocast (weights, optimizer and evaluation in float32). The rows behind the tables are in
`benchmarks/quality/results`."""

RECIPE = """{name}: arms that cut a trained network train it for {dense} steps first and fine-tune the subnet for the
other {rest}, at {tune:g} times the peak rate of {rate:g}; share and rates were chosen for *their* accuracy. `DHSPG`,
`HESSO` and `H2SPG` take one training of {steps} steps. *Difference* is that of the mean accuracy, in points, to the
best of coppice's sparse optimizers at that budget (choosing the best favours it a little where several are close), with
a 95 % percentile bootstrap over seeds of the paired differences. ± is the standard error."""


def section(task: Task, rows: Iterable[Row], missing: dict[str, str], versions: dict[str, str]) -> str:
    """The text that follows a protocol's heading: the recipe, the tables, what is left out, versions."""
    rows, recipe = list(rows), task.recipe
    parts = [
        RECIPE.format(
            name=task.name,
            dense=recipe.dense,
            rest=recipe.steps - recipe.dense,
            steps=recipe.steps,
            tune=recipe.tune,
            rate=recipe.rate,
        ),
        tables(task, rows),
    ]
    if missing:
        parts.append("Left out: " + ", ".join(f"{name} ({why})" for name, why in missing.items()) + ".\n")
    parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n")
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def put(path: Path, name: str, text: str) -> None:
    """A section of the page on quality, which begins with what all protocols have in common."""
    page.put(path, name, text, HEAD.format(low=1 - TOLERANCE))
