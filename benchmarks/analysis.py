"""How tracing and analysis grow with the model: seconds and MB, per node, for chains, stacks and well-known models.

    python benchmarks/analysis.py                                   # everything, minutes
    python benchmarks/analysis.py --only chain --sizes 40 80 160 --repetitions 3 --json out/analysis.json
    python benchmarks/analysis.py --only models --repetitions 1     # ResNets, Swin-B, BERT-large, Llama-2 7B and 70B

Chains are residual blocks of convolutions, stacks are transformer layers; both are measured at growing sizes, and the
largest over the smallest figure per node is printed: 1.0 would be perfectly flat. The models run on meta tensors, as
their weights do not fit. Each measurement runs in a process of its own, on one thread, after a small model has been
traced and analysed; sizes take turns within a repetition, medians are quoted. Seconds are CPU seconds, so that other
work on the machine counts little. MB of a trace are the growth of the process's peak over what it held before (VmHWM on
Linux, elsewhere 0); MB of an analysis, which takes what the trace gave back, are what Python allocated at most at once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coppice

STATUS = Path("/proc/self/status")
SIZES = {"chain": [40, 80, 160, 320, 640, 1280], "stack": [12, 24, 48, 96]}
MODELS = ["resnet50", "resnet152", "swin_b", "bert_large", "llama2_7b", "llama2_70b"]
FIGURES = ("trace_s", "analysis_s", "trace_mb", "analysis_mb")

Case = tuple[nn.Module, Any]


# ---- what is measured ------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Layer(nn.Module):
    """A pre-norm transformer layer with four heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        h = self.norm1(x)
        q, k, v = (f(h).view(n, t, 4, width // 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in sizes)
        self.short = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False) if inputs != 4 * width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.convs[0](x)))
        y = torch.relu(self.norms[1](self.convs[1](y)))
        return torch.relu(self.norms[2](self.convs[2](y)) + self.short(x))


def chain(blocks: int) -> Case:
    body = [Block(16) for _ in range(blocks)]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *body, *pool), torch.randn(2, 3, 8, 8)


def stack(layers: int) -> Case:
    return nn.Sequential(nn.Linear(8, 32), *[Layer(32) for _ in range(layers)], nn.Linear(32, 10)), torch.randn(2, 6, 8)


def resnet(depths: tuple[int, ...]) -> Case:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        for block in range(depth):
            layers.append(Bottleneck(inputs, 64 << stage, 2 if stage and not block else 1))
            inputs = 256 << stage
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)]
    return nn.Sequential(*layers), torch.randn(2, 3, 224, 224)


def transformer(name: str) -> Case:
    """A model of the transformers library from a configuration written here: nothing is downloaded."""
    import transformers as hf

    tokens = torch.zeros(2, 128, dtype=torch.int64)
    if name == "swin_b":
        swin = hf.SwinConfig(image_size=224, embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32])
        return hf.SwinModel(swin), torch.randn(2, 3, 224, 224)
    if name == "bert_large":
        bert = hf.BertConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
        )  # fmt: skip
        return hf.BertModel(bert), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    wide = name == "llama2_70b"
    llama = hf.LlamaConfig(
        hidden_size=8192 if wide else 4096,
        intermediate_size=28672 if wide else 11008,
        num_hidden_layers=80 if wide else 32,
        num_attention_heads=64 if wide else 32,
        num_key_value_heads=8 if wide else 32,
        use_cache=False,
    )
    return hf.LlamaForCausalLM(llama), {"input_ids": tokens}


BUILD: dict[str, Callable[[], Case]] = {
    "resnet50": lambda: resnet((3, 4, 6, 3)),
    "resnet152": lambda: resnet((3, 8, 36, 3)),
    **{name: lambda name=name: transformer(name) for name in MODELS[2:]},  # type: ignore[misc]
}


def build(kind: str, size: int) -> Case:
    if kind in SIZES:
        return {"chain": chain, "stack": stack}[kind](size)
    with torch.device("meta"):
        return BUILD[kind]()


# ---- one measurement -------------------------------------------------------------------------------------------------


def memory(which: str) -> float:
    """MB of this process by one line of its status: VmRSS (held now) or VmHWM (the peak); 0 where none is counted."""
    if not STATUS.exists():
        return 0.0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def stage(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of ``run``, its CPU seconds, and by how many MB the peak grew over what was held before."""
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    held, start = memory("VmRSS"), time.process_time()
    result = run()
    return result, time.process_time() - start, max(0.0, memory("VmHWM") - held)


def allocated(run: Callable[[], Any]) -> float:
    """MB that Python and numpy held at most at once during ``run``."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1024**2


def measure(kind: str, size: int) -> dict[str, float]:
    """Seconds and MB of each stage for one model, in this process."""
    torch.set_num_threads(1)
    small, x = build("stack" if kind == "stack" else "chain", 2)
    coppice.build_space(coppice.trace(small.eval(), x))  # torch.export imports itself on first use
    model, example = build(kind, size)
    model.eval()
    graph, trace_s, trace_mb = stage(lambda: coppice.trace(model, example))
    space, analysis_s, _ = stage(lambda: coppice.build_space(graph))
    _, cost_s, _ = stage(lambda: space.cost(space.full()))
    peak = memory("VmHWM")
    analysis_mb = allocated(lambda: coppice.build_space(graph))
    return {
        "nodes": len(graph.nodes),
        "families": len(space.families),
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "trace_s": trace_s,
        "analysis_s": analysis_s,
        "cost_s": cost_s,
        "trace_mb": trace_mb,
        "analysis_mb": analysis_mb,
        "rss_mb": peak,
    }


def measured(kind: str, size: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--one", kind, str(size)]
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} {size} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


# ---- the report ------------------------------------------------------------------------------------------------------


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure, the same per node (ms and KB), and the spread of the seconds over the repetitions."""
    row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    for figure in FIGURES:
        unit = figure.replace("_s", "_ms").replace("_mb", "_kb")
        row[f"{unit}_per_node"] = row[figure] * (1024 if unit.endswith("kb") else 1000) / row["nodes"]
    whole = [run["trace_s"] + run["analysis_s"] for run in runs]
    row["spread"] = max(whole) / min(whole)
    return row


def print_row(name: str, row: dict[str, float]) -> None:
    print(
        f"{name:<12} {row['nodes']:>7.0f} nodes {row['families']:>5.0f} families"
        f"  trace {row['trace_s']:8.2f} s {row['trace_ms_per_node']:6.2f} ms/node {row['trace_mb']:7.1f} MB"
        f" {row['trace_kb_per_node']:6.1f} KB/node"
        f"  analysis {row['analysis_s']:7.2f} s {row['analysis_ms_per_node']:6.3f} ms/node {row['analysis_mb']:7.1f} MB"
        f" {row['analysis_kb_per_node']:6.2f} KB/node  peak {row['rss_mb']:7.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*SIZES, "models", *MODELS], default=[*SIZES, "models"])
    parser.add_argument("--sizes", type=int, nargs="+", help="sizes of chains and stacks")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    cases = [(kind, size) for kind in SIZES if kind in options.only for size in options.sizes or SIZES[kind]]
    cases += [(name, 0) for name in MODELS if name in options.only or "models" in options.only]
    runs: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    for repetition in range(options.repetitions):
        for case in cases:
            runs[case].append(measured(*case))
            print(f"repetition {repetition + 1}: {case[0]} {case[1] or ''}", file=sys.stderr)
    rows = {case: medians(own) for case, own in runs.items()}
    flat: dict[str, dict[str, float]] = {}
    for (kind, size), row in rows.items():
        print_row(f"{kind} {size or ''}", row)
    for kind in SIZES:
        own = [row for (k, _), row in rows.items() if k == kind]
        if len(own) > 1:
            keys = [key for key in own[0] if key.endswith("_per_node") and all(row[key] > 0 for row in own)]
            flat[kind] = {key: max(r[key] for r in own) / min(r[key] for r in own) for key in keys}
            print(f"{kind}: flat within " + ", ".join(f"{ratio:.2f} ({key})" for key, ratio in flat[kind].items()))
    if options.json:
        facts = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
        table = [{"kind": kind, "size": size, **row} for (kind, size), row in rows.items()]
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "flat_within": flat, "rows": table}, indent=1))


if __name__ == "__main__":
    main()
