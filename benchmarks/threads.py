"""Measures what a second thread, or a third, is worth: the kernels alone against themselves in a ``Pool``.

python benchmarks/threads.py [--threads 2] [--models mobilenet_v1 ...] [--sparsity 0.9] [--repetitions 30]
                             [--docs docs/kernels.md]

A virtual machine may find its cores on one physical core for a while, and then nothing is worth a second thread. So
each round is between two probes: multiply-adds in registers, alone and in all threads at once, each on a core of its
own. A round counts where both say that the cores were there; the table says how many did not. It also says what the
threads would be worth if none got in the way of another: the time of the whole over that of its longest share, each
share by itself in one thread. What is missing there is the kernel's, the rest is what the machine lets threads share.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from page import put, table

from coppice.kernels import Pool, bind
from coppice.kernels._load import load
from coppice.kernels.bench import Shape, load_shapes
from coppice.kernels.bench.machine import cores, pinned
from coppice.kernels.bench.peaks import fastest_loop
from coppice.kernels.bench.problem import SHORT, Problem

MODELS = ("mobilenet_v1", "resnet50", "efficientnet_b0", "vit_s", "bert_base")
#: Layout, type of the weight and of x, what is allowed.
KERNELS = (
    ("csr", "float32", "float32"),
    ("4x1", "float32", "float32"),
    ("4x1", "bfloat16", "bfloat16"),
    ("dense", "float32", "float32"),
)
#: Seconds: shorter calls are left out, as what they wait for each other is no small part of them; of a timing; of a
#: probe.
LEAST, TIMING, PROBE = 20e-6, 3e-3, 5e-3
#: Of its threads a probe must find so many at work, and a round is tried so often at most.
FREE, TRIES = 0.92, 20
#: What is wanted of two threads, and pixels of which each of them gets four panels of the widest.
WANTED, MANY = 1.85, 4 * 2 * 96


class Probe:
    """How many cores so many threads get."""

    def __init__(self, threads: int) -> None:
        self.threads, self.loop = threads, fastest_loop()
        self.workers = ThreadPoolExecutor(threads, initializer=_stay, initargs=(iter(cores(threads) or ()),))
        self.rounds = 1
        while (seconds := _seconds(self._alone, 1)) < PROBE / 2:
            self.rounds = max(self.rounds + 1, ceil(self.rounds * min(4.0, PROBE / seconds)))

    def _alone(self) -> None:
        self.loop.sums(self.rounds)

    def _together(self) -> None:
        list(self.workers.map(self.loop.sums, [self.rounds] * self.threads))

    def cores(self) -> float:
        return self.threads * _seconds(self._alone, 1) / _seconds(self._together, 1)


def _stay(places: Iterator[int]) -> None:
    """Keeps this thread on the next of these CPUs, if there is one."""
    for place in places:
        os.sched_setaffinity(0, {place})
        return


class Share(Pool):
    """One share of so many of each call, by itself, in the caller's thread."""

    def __init__(self, share: int, shares: int) -> None:
        super().__init__(1)
        self.share, self.threads = share, shares

    def run(self, variant: int, args: Any) -> int:
        args.work.share, args.work.shares = self.share, self.threads
        return int(load().c.coppice_variant_run(variant, args))


def _seconds(call: Callable[[], object], inner: int) -> float:
    begin = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - begin) / inner


@dataclass(frozen=True)
class Found:
    """Round by round, the time of one thread over that of all, and over that of the longest share by itself; and how
    many rounds there were, those left out counted."""

    ratios: np.ndarray
    apart: np.ndarray
    tried: int


def measure(shape: Shape, sparsity: float, kernel: Sequence[str], pool: Pool, probe: Probe, most: int) -> Found | None:
    """None: too short, or few pixels."""
    layout, kind, arithmetic = kernel
    if shape.pixels == 1:
        return None
    problem = Problem(shape, sparsity)
    weight, x, out = problem.weight(layout, kind), problem.tensor(kind), problem.empty(kind)
    by = (None, pool, *(Share(share, pool.threads) for share in range(pool.threads)))
    alone, together, *shares = (
        bind(weight, x, window=shape.window, out=out, arithmetic=arithmetic, pool=one) for one in by
    )
    seconds = min(_seconds(alone, 3) for _ in range(3))
    if seconds < LEAST:
        return None
    inner, rounds, tried = ceil(TIMING / seconds), [], 0
    while len(rounds) < most and tried < TRIES * most:
        tried += 1
        before = probe.cores()
        together()
        whole, joint, *each = (_seconds(call, inner) for call in (alone, together, *shares))
        if min(before, probe.cores()) >= FREE * pool.threads:
            rounds.append((whole / joint, whole / max(each)))
    return Found(*np.array(rounds).reshape(-1, 2).T, tried)


def rows(asked: argparse.Namespace, pool: Pool) -> Iterator[list[str]]:
    """Of each kernel: all its layers, those of many pixels, the least of them."""
    probe = Probe(asked.threads)
    for kernel in KERNELS:
        found = {}
        for shape in load_shapes(asked.models):
            held = measure(shape, asked.sparsity, kernel, pool, probe, asked.repetitions)
            if held is not None and len(held.ratios):
                found[shape] = held
        medians = {shape: float(np.median(held.ratios)) for shape, held in found.items()}
        large = [shape for shape in found if shape.pixels >= MANY]
        spreads = [np.percentile(held.ratios, 90) / np.percentile(held.ratios, 10) for held in found.values()]
        tried, counted = sum(held.tried for held in found.values()), sum(len(held.ratios) for held in found.values())
        worst = min(medians, key=lambda shape: medians[shape])
        layout, kind, _ = kernel
        yield [
            f"{layout} {SHORT[kind]}",
            *summary(medians.values()),
            *summary(medians[shape] for shape in large),
            f"{mean(np.median(found[shape].apart) for shape in large):.2f}",
            f"{medians[worst]:.2f}: {worst.model} {worst.layer}, {worst.text}",
            f"{np.median(spreads):.2f}",
            f"{1 - counted / tried:.0%}",
        ]
    probe.workers.shutdown()


def summary(medians: Iterable[float]) -> list[str]:
    """How many, their geometric mean, and how many of them reach what is wanted."""
    held = list(medians)
    return [str(len(held)), f"{mean(held):.2f}", f"{sum(median >= WANTED for median in held)}"]


def mean(ratios: Iterable[float]) -> float:
    """Geometric; of none NaN."""
    held = np.log(list(ratios))
    return float(np.exp(held.mean())) if held.size else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--docs", type=Path, help="write the table between the marks of this page")
    asked = parser.parse_args()
    with pinned(asked.threads):
        pool = Pool(asked.threads)
        held = list(rows(asked, pool))
        pool.close()
    several = ("mean", f">= {WANTED}")
    many = [f"of {MANY} pixels", *several, "shares apart"]
    head = ["kernel", "layers", *several, *many, "least", "p90 / p10", "rounds left out"]
    text = (
        f"{asked.threads} threads over one, layers of {', '.join(asked.models)} that take one {LEAST * 1e6:.0f} us or "
        f"more, {asked.sparsity:.0%} zeros, medians of {asked.repetitions} rounds, geometric means of these:\n\n"
    ) + table(head, held)
    print(text)
    if asked.docs is not None:
        put(asked.docs, "threads", text)


if __name__ == "__main__":
    main()
