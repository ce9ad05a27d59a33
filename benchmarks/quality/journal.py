"""Rows on disk, one JSON line each, appended and synced: what is measured once stays measured."""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quality.images import PEERS, ROOT
from quality.task import Task

Row = dict[str, Any]


class Journal:
    """Rows by key. Those of other code, versions or recipes stay in the file and do not count."""

    def __init__(self, path: Path, stamp: str) -> None:
        self.path, self.stamp = path, stamp
        self.rows: dict[str, Row] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:  # the line that was being written when the run was stopped
                continue
            if row["stamp"] == stamp:
                self.rows[row["key"]] = row

    def add(self, row: Row) -> None:
        row = {"stamp": self.stamp, **row}
        self.rows[row["key"]] = row
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not self._whole():
                file.write("\n")
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _whole(self) -> bool:
        """Whether the file ends with a line's end: a stopped run may have left half a line."""
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def stamp(task: Task) -> str:
    """A digest of what a row depends on: the sources of coppice and of this benchmark, versions, the recipe."""
    digest = hashlib.sha256()
    left_out = {"report.py", "__main__.py", "gpu.py", "gpu_job.py", "pairs.py", "digits.py", "cifar.py"}
    left_out -= {type(task).__module__.rpartition(".")[2] + ".py"}
    folders = ("core", "passes", "frontends", "backends", "api", "benchmarks/quality")
    for path in sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        if path.parent.name != "quality" or path.name not in left_out:
            digest.update(path.read_bytes())
    digest.update(json.dumps([versions(), asdict(task.recipe), task.name]).encode())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of Python and of what decides the numbers."""
    import sys

    found = {"python": platform.python_version()}
    for name in ("torch", "torch-pruning", "scikit-learn"):
        record = next(iter(metadata.distributions(name=name, path=[*sys.path, str(PEERS)])), None)
        if record is not None:
            found[name] = record.version
    return found
