"""Measures what a call from Python costs beside the work: bound and unbound calls of every primitive on 32 elements.

python benchmarks/calls.py [--rounds 40]
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from coppice import kernels
from coppice.kernels._load import load

#: Calls in one timing: about a millisecond of bound ones.
INNER = 1000


def problems(new: Callable[..., Any]) -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Functions with their arguments, of arrays or tensors that ``new`` makes of a shape: a cache line or two each."""
    weight = kernels.Weight.sparse(np.eye(4, dtype=np.float32))
    x, z, out, image, spatial = (new(shape) for shape in ((4, 8), (4, 8), (4, 8), (2, 4, 4), (2, 4, 4)))
    window = kernels.Window((1, 1))
    return {
        "matmul": (kernels.matmul, (weight, x), {"out": out}),
        "matmul + bias + residual, relu": (
            kernels.matmul, (weight, x), {"out": out, "bias": new((4,)), "residual": z, "activation": "relu"},
        ),
        "depthwise": (kernels.depthwise, (new((2, 1, 1)), image), {"out": spatial}),
        "layer_norm": (kernels.layer_norm, (x,), {"out": out}),
        "softmax": (kernels.softmax, (x,), {"out": out}),
        "max_pool": (kernels.max_pool, (image, window), {"out": spatial}),
        "eltwise": (kernels.eltwise, (x, z), {"out": out}),
    }  # fmt: skip


def contenders() -> dict[str, Callable[[], object]]:
    """What takes turns, the empty call of cffi first."""
    found: dict[str, Callable[[], object]] = {"empty": load().c.coppice_abi_version}
    for source, new in (("numpy", partial(np.zeros, dtype=np.float32)), ("torch", torch.zeros)):
        for name, (function, arguments, options) in problems(new).items():
            if source == "numpy":
                found[f"{name}/bound"] = function.bind(*arguments, **options)
            found[f"{name}/{source}"] = partial(function, *arguments, **options)
    return found


def measure(rounds: int) -> dict[str, np.ndarray]:
    """Microseconds of CPU of a call, [rounds], all in turns, in a new order each round."""
    calls, random = contenders(), np.random.default_rng(0)
    times = {name: np.empty(rounds) for name in calls}
    gc.collect()
    gc.disable()
    for done in range(rounds):
        for name in random.permutation(list(calls)):
            call, inner = calls[name], INNER if name.endswith(("empty", "bound")) else INNER // 20
            call()
            begin = time.thread_time()
            for _ in range(inner):
                call()
            times[name][done] = (time.thread_time() - begin) / inner * 1e6
    gc.enable()
    return times


def report(times: dict[str, np.ndarray]) -> str:
    """A table of medians with their 10th and 90th percentiles."""

    def cell(name: str) -> str:
        p10, median, p90 = np.percentile(times[name], (10, 50, 90))
        return f"{median:.2f} ({p10:.2f}-{p90:.2f})"

    names = [name.removesuffix("/bound") for name in times if name.endswith("/bound")]
    rows = [
        f"| `{name}` | {cell(name + '/bound')} | {cell(name + '/numpy')} | {cell(name + '/torch')} |" for name in names
    ]
    title = "| us a call on 32 elements | bound | numpy arrays | torch tensors |\n| --- | --- | --- | --- |"
    return "\n".join([title, *rows, f"\nAn empty call through cffi: {cell('empty')} us."])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    print(report(measure(parser.parse_args().rounds)))
