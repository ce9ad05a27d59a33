"""The record of a training run on disk: metrics as lines of JSON, and checkpoints that are whole or absent.

A process that is killed at any moment leaves a folder from which the run goes on to the identical result: what was
logged after the last checkpoint is dropped, and made again.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from coppice.core.errors import UnsupportedError, UsageError, first_line
from coppice.core.files import write_atomic, write_text

SYNC_SECONDS = 2.0
"""Lines reach the disk at least this often; each reaches the operating system, so only a power cut can lose them."""


class Metrics:
    """``metrics.jsonl``: one JSON object for each logged step, with its ``step``."""

    def __init__(self, path: Path, step: int) -> None:
        """Open ``path`` to go on at ``step``: lines of later steps are dropped."""
        lines = [json.dumps(line) for line in read_metrics(path) if line["step"] < step] if path.exists() else []
        write_text(path, "".join(f"{line}\n" for line in lines))
        self.file: TextIO = path.open("a", encoding="utf-8")
        self.synced = time.monotonic()

    def append(self, values: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        if time.monotonic() - self.synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Let all lines reach the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.synced = time.monotonic()

    def close(self) -> None:
        self.sync()
        self.file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was not written to its end is left out."""
    return list(_lines(path))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for k, text in enumerate(texts):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line
        elif k < len(texts) - 1:
            raise UsageError(
                f"line {k + 1} is no JSON object with a step", place=str(path), remedy="start in a new folder"
            )


def plain(name: str, value: Any) -> float | int | str:
    """A metric as JSON can hold it: numbers and tensors of one number; NaN and infinity as text."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.detach().item()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"it is a {type(value).__name__}", place=f"log({name}=...)", remedy="log single numbers")
    return value if isinstance(value, int) or math.isfinite(value) else str(value)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def save_checkpoint(path: Path, state: Mapping[str, Any], check: bool) -> None:
    """Write ``state`` to ``path``, whole or not at all; with ``check``, `UnsupportedError` if it cannot be read."""

    def write(temporary: Path) -> None:
        torch.save(dict(state), temporary)
        if check:
            try:
                torch.load(temporary, weights_only=True)
            except Exception as error:
                raise UnsupportedError(
                    f"a state_dict holds more than tensors, numbers and text: {first_line(error)[:200]}",
                    place=str(path),
                    remedy="let every state_dict() return plain data: nothing else is ever unpickled",
                ) from error

    write_atomic(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote. Nothing but tensors and plain data is unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(
            f"it cannot be read: {first_line(error)[:200]}", place=str(path), remedy="start in a new folder"
        ) from error
    if not isinstance(state, dict) or not {"step", "seconds", "random", "parts"} <= state.keys():
        raise UsageError("it is no checkpoint of a run", place=str(path), remedy="start in a new folder")
    return state


def random_state() -> dict[str, Any]:
    """The generators of Python, numpy and torch (all CUDA devices in use), as tensors and plain data."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if in_use else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators where `random_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
