"""Trace, analyse, halve and prove every model of the list; write the table.

    PYTHONPATH=tests:benchmarks python -m model_coverage --peers --docs docs/coverage.md

Each model runs in its own process under a time limit. Rows are appended to a journal; a run that is stopped goes on
where it was, unless the code or a version has changed since.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from model_coverage import peers, registry, report, worker

ROOT = Path(__file__).parents[2]


def main() -> int:
    options = _options()
    absent = peers.missing()
    sources = tuple(s for s in registry.SOURCES if s in options.sources)
    if absent and (options.peers or not {"timm", "torchvision"}.isdisjoint(sources)):
        print(f"missing in build/peers: {', '.join(absent)}; run: make coverage", file=sys.stderr)
        return 2
    keys = [k for k in registry.keys(sources) if not options.only or any(fnmatch.fnmatch(k, p) for p in options.only)]
    tools = worker.TOOLS if options.peers else worker.TOOLS[:1]
    limits = {"coppice": options.limit, "torch-pruning": options.peer_limit}
    journal = Journal(options.journal, stamp(limits), options.again)
    run(keys, tools, journal, limits)
    domains = {key: e.domain for source in sources for key, e in registry.entries(source).items()}
    rows = [journal.rows[tool, key] | {"domain": domains[key]} for tool in tools for key in keys]
    report.show(rows)
    if options.docs:
        options.docs.write_text(report.markdown(rows, versions(), limits), encoding="utf-8")
    return 0 if all(report.sound(r) for r in rows if r["tool"] == "coppice") else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="model_coverage", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="GLOB", help="models by key, e.g. 'timm/res*'")
    parser.add_argument("--sources", nargs="+", choices=registry.SOURCES, default=list(registry.SOURCES))
    parser.add_argument("--peers", action="store_true", help="run Torch-Pruning on the same list too")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds per model")
    parser.add_argument("--peer-limit", type=float, default=120.0, help="seconds per model for Torch-Pruning")
    parser.add_argument("--journal", type=Path, default=ROOT / "out" / "coverage" / "journal.jsonl")
    parser.add_argument("--again", action="store_true", help="measure anew what the journal holds")
    parser.add_argument("--docs", type=Path, help="write the table to this file")
    return parser.parse_args()


def run(keys: list[str], tools: tuple[str, ...], journal: Journal, limits: dict[str, float]) -> None:
    todo = [(tool, key) for tool in tools for key in keys if (tool, key) not in journal.rows]
    context = worker.context()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(todo))
        for tool, key in todo:
            progress.update(task, description=f"{key} ({tool})")
            row = worker.measure(context, tool, key, limits[tool], journal.path.with_suffix(".answer.json"))
            journal.add(row)
            if row["stage"] != "checked" or (tool == "coppice" and not report.sound(row)):
                progress.console.print(report.line(row))
            progress.advance(task)


class Journal:
    """Rows by (tool, key), one JSON line each, behind a first line that stamps code and versions."""

    def __init__(self, path: Path, stamp: dict[str, Any], again: bool = False) -> None:
        self.path = path
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and not again else []
        if not lines or json.loads(lines[0]) != stamp:
            path.write_text(json.dumps(stamp) + "\n", encoding="utf-8")
            return
        for text in lines[1:]:
            try:
                row = json.loads(text)
            except ValueError:  # the line that was being written when the run was stopped
                continue
            self.rows[row["tool"], row["key"]] = row

    def add(self, row: dict[str, Any]) -> None:
        self.rows[row["tool"], row["key"]] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def stamp(limits: dict[str, float]) -> dict[str, Any]:
    """What a row depends on: the sources of coppice and of this table, versions, the time limit."""
    digest = hashlib.sha256()
    folders = ("core", "passes", "frontends", "backends", "api", "benchmarks/model_coverage", "tests/zoo")
    for path in sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        if path.name not in ("report.py", "__main__.py"):
            digest.update(path.read_bytes())
    return {"code": digest.hexdigest()[:16], "limits": limits, "versions": versions()}


def versions() -> dict[str, str]:
    import importlib.metadata as metadata

    paths = [*sys.path, str(peers.FOLDER)]
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "timm", "torchvision", "torch_pruning"):
        record = next(iter(metadata.distributions(name=name, path=paths)), None)
        found[name] = record.version if record is not None else "absent"
    return found


if __name__ == "__main__":
    sys.exit(main())
