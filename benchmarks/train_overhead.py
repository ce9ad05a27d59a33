"""What a sparse optimizer's step costs over its base optimizer's, on ResNet-18's parameters, stage by stage.

    python benchmarks/train_overhead.py                                        # everything, a quarter of an hour
    python benchmarks/train_overhead.py --methods DHSPG --bases sgd --threads 1 --schedules 2
    python benchmarks/train_overhead.py --json out/train_overhead.json

Two copies of the model, with the same random gradients, take turns step by step, in an order that changes each step:
one under the base optimizer, one under the sparse optimizer around it. Whole schedules are run (warm-up, shrinking,
refinement). A repetition is one stride of a stage, so that each holds one step that works on units; its figure is the
sum of our steps' times over the sum of the base's. Medians are quoted with 10th and 90th percentiles over all strides
of all schedules. "whole" weighs the stages as a schedule does and adds the time of choosing units, which happens once
(in HESSO, once a period). One thread is measured in CPU seconds, more in wall-clock seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import coppice

BASES: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=1e-4),
    "adamw": partial(torch.optim.AdamW, lr=1e-5, weight_decay=1e-2),
    "sgd_fused": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True),
    "adamw_fused": partial(torch.optim.AdamW, lr=1e-5, weight_decay=1e-2, fused=True),
}
METHODS: dict[str, Callable[..., Any]] = {
    "DHSPG": coppice.DHSPG,
    "HESSO": coppice.HESSO,
    "HESSO_CRIC": partial(coppice.HESSO, cric=True),
}
STAGES = ("warm-up", "shrink", "refine")


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.short = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.short(x))


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        layers += [Block(inputs, width, 2 if stage else 1), Block(width, width, 1)]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def with_gradients(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator) * 1e-3
    return model


def schedule(method: str, base: str, budget: str, steps: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of every step of one schedule, ours and the base's, and what is needed to sort them into stages."""
    model, plain = with_gradients(resnet18()), with_gradients(resnet18())
    space = coppice.build_space(coppice.trace(model.eval(), torch.randn(2, 3, 64, 64)))
    ours = METHODS[method](space, BASES[base](model.parameters()), {"macs": budget}, steps=steps)
    theirs = BASES[base](plain.parameters())
    seconds = np.zeros((2, steps))
    for step in range(steps):
        for which in ((0, 1), (1, 0))[step % 2]:
            optimizer = (theirs, ours)[which]
            begin = clock()
            optimizer.step()
            seconds[which, step] = clock() - begin
    assert ours.progress["zero"] == ours.progress["redundant"] > 0
    bounds = ((0, ours.start), (ours.start, ours.stop), (ours.stop, steps))
    strides = [ours.schedule.stride(first) for first, _ in bounds]
    return {"seconds": seconds, "bounds": bounds, "strides": strides, "points": ours._points()}


def strides_of(run: dict[str, Any], stage: int) -> tuple[np.ndarray[Any, Any], int]:
    """Mean seconds per step [2, strides of a stage], steps that choose units left out, and the stage's length."""
    first, end = run["bounds"][stage]
    stride = run["strides"][stage]
    usual = np.delete(run["seconds"], list(run["points"]), axis=1)
    first, end = (bound - sum(p < bound for p in run["points"]) for bound in (first, end))
    count = (end - first) // stride
    own = usual[:, end - count * stride : end].reshape(2, count, stride).mean(2)
    return own, run["bounds"][stage][1] - run["bounds"][stage][0]


def figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios by stage and for the whole schedule: median, 10th and 90th percentile, repetitions; milliseconds."""
    rows: dict[str, Any] = {}
    parts = []
    for stage, name in enumerate(STAGES):
        own = np.concatenate([strides_of(run, stage)[0] for run in runs], axis=1)
        rows[name] = spread(own[1] / own[0]) | {
            "base_ms": 1e3 * float(np.median(own[0])),
            "ours_ms": 1e3 * float(np.median(own[1])),
            "stride": runs[0]["strides"][stage],
        }
        parts.append((own, strides_of(runs[0], stage)[1]))
    choice = [float(run["seconds"][1, p] - np.median(run["seconds"][1])) for run in runs for p in run["points"]]
    chosen = statistics.median(choice) * len(runs[0]["points"])
    n = min(own.shape[1] for own, _ in parts)
    ours = sum(own[1, :n] * length for own, length in parts) + chosen
    rows["whole"] = spread(ours / sum(own[0, :n] * length for own, length in parts))
    rows["choice_s"] = chosen
    return rows


def spread(ratios: np.ndarray[Any, Any]) -> dict[str, float]:
    low, middle, high = np.percentile(ratios, (10, 50, 90)).tolist()
    return {"ratio": middle, "p10": low, "p90": high, "repetitions": len(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--bases", nargs="+", choices=BASES, default=["sgd", "adamw"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--budget", default="50%", help="of MACs")
    parser.add_argument("--steps", type=int, default=1000, help="of a schedule; strides grow with it")
    parser.add_argument("--schedules", type=int, default=2, help="about 24 repetitions each")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        for base in options.bases:
            for method in options.methods:
                runs = []
                for _ in range(options.schedules):
                    runs.append(schedule(method, base, options.budget, options.steps, clock))
                    print(f"{threads} threads, {method} around {base}: a schedule done", file=sys.stderr)
                rows = figures(runs)
                table.append({"threads": threads, "base": base, "method": method, **rows})
                print(f"{threads} threads  {method} around {base}  choice {1e3 * rows['choice_s']:.0f} ms a schedule")
                for name in (*STAGES, "whole"):
                    row = rows[name]
                    times = f"{row['base_ms']:6.1f} -> {row['ours_ms']:6.1f} ms" if "base_ms" in row else " " * 19
                    every = f"stride {row['stride']:>3}" if "stride" in row else " " * 10
                    print(
                        f"  {name:<8} {times}  {every}  {row['ratio']:.3f}x"
                        f"  [{row['p10']:.3f}, {row['p90']:.3f}]  {row['repetitions']} repetitions"
                    )
    if options.json:
        facts = {"torch": torch.__version__, "python": platform.python_version(), "budget": options.budget}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "steps": options.steps, "rows": table}, indent=1))


if __name__ == "__main__":
    main()
