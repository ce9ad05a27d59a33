"""One model in a process of its own: a crash or a hang costs that model's row and nothing else."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

TOOLS = ("coppice", "torch-pruning")


def context() -> Any:
    """A server that has the imports done and forks a clean process per model, where the system can."""
    methods = multiprocessing.get_all_start_methods()
    result: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        result.set_forkserver_preload(["model_coverage.warm"])
    return result


def measure(context: Any, tool: str, key: str, limit: float, answer: Path) -> dict[str, Any]:
    """The row of one model by one tool; a process that dies or outlives ``limit`` seconds gives a row that says so."""
    answer.unlink(missing_ok=True)
    started = time.perf_counter()
    process = context.Process(target=_work, args=(tool, key, str(answer), limit))
    process.start()
    process.join(limit)
    row: dict[str, Any] = {"key": key, "stage": "build"}
    if process.is_alive():
        process.kill()
        process.join()
        row["failure"] = f"took more than {limit:.0f} s"
    elif answer.exists():
        row = json.loads(answer.read_text(encoding="utf-8"))
    else:
        row["failure"] = f"the process ended with code {process.exitcode}"
    return row | {"tool": tool, "wall": round(time.perf_counter() - started, 2)}


def _work(tool: str, key: str, answer: str, limit: float) -> None:
    import torch

    from model_coverage import registry

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(10_000)
    torch.set_num_threads(1)
    entry = registry.find(key)
    if tool == "coppice":
        from model_coverage.measure import measure as ours

        row = ours(entry)
    else:
        from model_coverage.torch_pruning_side import measure as theirs

        row = theirs(entry, limit - 20)
    part = Path(answer + ".part")
    part.write_text(json.dumps(row), encoding="utf-8")
    part.replace(answer)
