"""How trace, analysis and space construction grow with the model: seconds and nodes for chains of residual blocks.

    python benchmarks/analysis.py --blocks 40 80 160 320 640 --repetitions 3 --json out/analysis.json

Quotes the median of interleaved repetitions, and the spread of seconds per node relative to the smallest chain.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import coppice


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Chain(nn.Module):
    def __init__(self, blocks: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def measure(blocks: int) -> dict[str, float]:
    """Seconds of each stage for one chain, built afresh."""
    model, x = Chain(blocks).eval(), torch.randn(2, 3, 8, 8)
    start = time.perf_counter()
    graph = coppice.trace(model, x)
    traced = time.perf_counter()
    space = coppice.build_space(graph)
    built = time.perf_counter()
    space.cost(space.uniform(0.5))
    return {
        "nodes": float(len(graph.nodes)),
        "trace": traced - start,
        "space": built - traced,
        "families": len(space.families),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[40, 80, 160, 320, 640])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measure(2)  # torch.export imports itself on first use
    runs: dict[int, list[dict[str, float]]] = {n: [] for n in options.blocks}
    for _ in range(options.repetitions):
        for blocks in options.blocks:
            runs[blocks].append(measure(blocks))
    rows = []
    for blocks, results in runs.items():
        nodes = results[0]["nodes"]
        trace, space = (statistics.median(r[k] for r in results) for k in ("trace", "space"))
        rows.append({"blocks": blocks, "nodes": nodes, "trace_s": trace, "space_s": space,
                     "trace_ms_per_node": 1e3 * trace / nodes, "space_ms_per_node": 1e3 * space / nodes,
                     "ms_per_node": 1e3 * (trace + space) / nodes})  # fmt: skip
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    rates = [row["ms_per_node"] for row in rows]
    print(f"slowest over fastest ms per node: {max(rates) / min(rates):.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
