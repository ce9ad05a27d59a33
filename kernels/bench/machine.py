"""The machine as far as it explains numbers: never its name, no paths."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from coppice.kernels._variants import isa

PACKAGES = ("coppice", "torch", "numpy", "scipy", "numba", "onnxruntime", "openvino")
_CPUS = Path("/sys/devices/system/cpu")
_UNITS = {"K": 1 << 10, "M": 1 << 20}


@dataclass(frozen=True)
class Cache:
    """A data cache: its level, its bytes, and how many CPUs share it."""

    level: int
    size: int
    sharing: int


@dataclass(frozen=True)
class Machine:
    """What a reader of the numbers must know. ``isa`` is the highest instruction set that our calls use."""

    cpu: str
    cores: int
    architecture: str
    isa: str
    caches: tuple[Cache, ...]


def this_machine() -> Machine:
    """The machine that this runs on; caches where the system tells them (Linux)."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return Machine(cpu or "unknown", os.cpu_count() or 1, platform.machine(), isa(), tuple(_caches()))


def _caches() -> Iterator[Cache]:
    for folder in sorted((_CPUS / "cpu0" / "cache").glob("index*")):
        try:
            kind, level, size, shared = (
                (folder / name).read_text().strip() for name in ("type", "level", "size", "shared_cpu_list")
            )
        except OSError:
            continue
        if kind != "Instruction":
            yield Cache(int(level), int(size[:-1]) * _UNITS.get(size[-1], 1), len(_numbers(shared)))


def _numbers(text: str) -> list[int]:
    """``0-2,5`` as [0, 1, 2, 5]."""
    ranges = [part.partition("-") for part in text.strip().split(",")]
    return [n for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]


def versions() -> dict[str, str]:
    """Of the packages that are measured, where they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cores(threads: int) -> set[int] | None:
    """So many of the CPUs that this process may use, on different cores while there are any; None: not known here."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    first_of: dict[str, int] = {}
    for cpu in allowed:
        siblings = _CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        first_of.setdefault(siblings.read_text() if siblings.is_file() else str(cpu), cpu)
    first = list(first_of.values())
    rest = [cpu for cpu in allowed if cpu not in first]
    return set((first + rest)[:threads])


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this thread, and those that start meanwhile, on as many cores, and torch to as many threads."""
    import torch

    before, chosen = torch.get_num_threads(), cores(threads)
    allowed = os.sched_getaffinity(0) if chosen else None
    torch.set_num_threads(threads)
    if chosen:
        os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)
        torch.set_num_threads(before)
