"""Measures what a second thread, or a third, is worth: the kernels alone against themselves in a ``Pool``.

python benchmarks/threads.py [--threads 2] [--models mobilenet_v1 ...] [--sparsity 0.9] [--repetitions 30]
                             [--docs docs/kernels.md]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from page import put, table

from coppice.kernels import Pool, bind
from coppice.kernels.bench import Shape, load_shapes
from coppice.kernels.bench.machine import pinned
from coppice.kernels.bench.measure import turns
from coppice.kernels.bench.problem import SHORT, Problem

MODELS = ("mobilenet_v1", "resnet50", "efficientnet_b0", "vit_s", "bert_base")
#: Layout, type of the weight and of x, what is allowed.
KERNELS = (
    ("csr", "float32", "float32"),
    ("4x1", "float32", "float32"),
    ("4x1", "bfloat16", "bfloat16"),
    ("dense", "float32", "float32"),
)
#: Shorter calls are left out: what they wait for each other is no small part of them.
LEAST = 20e-6


def ratios(shape: Shape, sparsity: float, kernel: Sequence[str], pool: Pool, repetitions: int) -> np.ndarray | None:
    """Time of one thread over time of the pool, round by round, on the wall; None: too short, or too few pixels."""
    layout, kind, arithmetic = kernel
    if shape.pixels == 1:
        return None
    problem = Problem(shape, sparsity)
    weight, x, out = problem.weight(layout, kind), problem.tensor(kind), problem.empty(kind)
    calls = [
        bind(weight, x, window=shape.window, out=out, arithmetic=arithmetic, pool=shared) for shared in (None, pool)
    ]
    alone, together = turns(calls, repetitions, pool.threads)
    return None if np.median(alone) < LEAST else alone / together


def rows(models: Sequence[str], sparsity: float, pool: Pool, repetitions: int) -> Iterator[list[str]]:
    """Of each kernel: its layers, the means of their medians, how many reach 1.85, the least of them."""
    for kernel in KERNELS:
        found = {shape: ratios(shape, sparsity, kernel, pool, repetitions) for shape in load_shapes(models)}
        medians = {shape: float(np.median(held)) for shape, held in found.items() if held is not None}
        spreads = [np.percentile(held, 90) / np.percentile(held, 10) for held in found.values() if held is not None]
        worst = min(medians, key=lambda shape: medians[shape])
        layout, kind, _ = kernel
        yield [
            f"{layout} {SHORT[kind]}",
            str(len(medians)),
            f"{np.exp(np.mean(np.log(list(medians.values())))):.2f}",
            f"{np.median(list(medians.values())):.2f}",
            f"{sum(median >= 1.85 for median in medians.values())}",
            f"{medians[worst]:.2f}: {worst.model} {worst.layer}, {worst.text}",
            f"{np.median(spreads):.2f}",
        ]


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
        held = list(rows(asked.models, asked.sparsity, pool, asked.repetitions))
        pool.close()
    head = ["kernel", "layers", "geometric mean", "median", ">= 1.85", "least", "spread (p90 / p10)"]
    text = (
        f"{asked.threads} threads over one, layers of {', '.join(asked.models)} that take one {LEAST * 1e6:.0f} us or "
        f"more, {asked.sparsity:.0%} zeros, {asked.repetitions} rounds of wall time in turns:\n\n"
    ) + table(head, held)
    print(text)
    if asked.docs is not None:
        put(asked.docs, "threads", text)


if __name__ == "__main__":
    main()
