"""The demo: a small residual CNN on scikit-learn's digits, trained once to 30 % of its MACs, beside a one-shot cut."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coppice.api.extract import extract
from coppice.api.recalibrate import recalibrate
from coppice.api.subnet import Subnet, load
from coppice.core.errors import EquivalenceError, UnsupportedError
from coppice.core.files import write_text
from coppice.frontends.torch import trace
from coppice.passes.prune.one_shot import prune
from coppice.passes.space.build import build_space
from coppice.passes.train.dhspg import DHSPG

BUDGET = {"macs": "30%"}
EPOCHS, TUNE_EPOCHS, BATCH = 40, 16, 64
RATE, DECAY = 3e-3, 1e-2
REPETITIONS = 60

Progress = Callable[[str, float], None]


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut: (N, in, H, W) -> (N, out, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """(N, 1, 8, 8) -> (N, 10) logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block1 = Residual(width, width)
        self.block2 = Residual(width, 2 * width, stride=2)
        self.block3 = Residual(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Row:
    """One line of the table; ``error`` is None for the full model, which has nothing to equal."""

    model: str
    accuracy: float
    params: int
    macs: int
    bytes: int
    latency_us: float
    error: float | None


@dataclass(frozen=True)
class Data:
    """Digits as float32 (n, 1, 8, 8) in about [-1, 1] and int64 labels."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits(seed: int = 0) -> Data:
    """scikit-learn's 1,797 digits, a quarter held out, stratified."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UnsupportedError(
            "the demo needs scikit-learn", place="coppice demo", remedy='pip install "coppice[demo]"'
        ) from error
    raw = load_digits()
    x = (raw.images.astype(np.float32) / 8.0 - 1.0)[:, None]
    parts = train_test_split(x, raw.target.astype(np.int64), test_size=0.25, random_state=seed, stratify=raw.target)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return Data(train_x, train_y, test_x, test_y)


def epoch(data: Data, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled full batches, each image shifted by up to one pixel."""
    order = torch.randperm(len(data.train_x), generator=generator)
    for at in torch.split(order, BATCH):
        if len(at) == BATCH:
            dx, dy = torch.randint(-1, 2, (2,), generator=generator).tolist()
            yield torch.roll(data.train_x[at], (dx, dy), (2, 3)), data.train_y[at]


def train(
    model: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    seed: int,
    report: Callable[[float], None] = lambda _: None,
) -> None:
    """A plain training loop with a one-cycle schedule; nothing in it knows of coppice."""
    generator = torch.Generator().manual_seed(seed)
    total = epochs * (len(data.train_x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=total)
    model.train()
    for k in range(epochs):
        for x, y in epoch(data, generator):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            schedule.step()
        report((k + 1) / epochs)
    model.eval()


def accuracy(model: nn.Module, data: Data) -> float:
    """Fraction of held-out digits that ``model`` names."""
    with torch.no_grad():
        return float((model(data.test_x).argmax(1) == data.test_y).float().mean())


def latencies(models: dict[str, nn.Module], x: Tensor, repetitions: int = REPETITIONS) -> dict[str, float]:
    """Median microseconds per sample of ``x``, one thread; models take turns, so a busy machine disturbs all alike."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode(), one_thread():
        for turn in range(repetitions + 10):
            for name, model in models.items():
                start = time.perf_counter_ns()
                model(x)
                if turn >= 10:
                    times[name].append((time.perf_counter_ns() - start) / 1e3)
    return {name: statistics.median(values) / len(x) for name, values in times.items()}


def run_demo(
    out: Path, *, progress: Progress = lambda _, __: None, seed: int = 0, epochs: int = EPOCHS
) -> dict[str, Any]:
    """Run the job and leave ``subnet/``, ``model.onnx`` and ``summary.json`` in ``out``; returns the summary."""
    with one_thread():
        return _run(out, progress, seed, epochs)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: a model this small gains nothing from more, and timings are steadier."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, progress: Progress, seed: int, epochs: int) -> dict[str, Any]:
    began = time.perf_counter()
    data = digits()
    torch.manual_seed(seed)
    start = DigitsNet()
    example = data.train_x[:2]

    full = copy.deepcopy(start)
    train(full, data, _adamw(full, RATE), epochs, seed, lambda f: progress("train the full model", f))

    once = copy.deepcopy(start)
    space = build_space(trace(once, example))
    steps = epochs * (len(data.train_x) // BATCH)
    optimizer = DHSPG(space, _adamw(once, RATE), BUDGET, steps=steps)
    train(once, data, optimizer, epochs, seed, lambda f: progress("train once with DHSPG", f))
    trained = extract(space, optimizer.config())

    cut = _one_shot(full, data, seed, progress)
    subnets = {"trained once": trained, "one-shot": cut}
    progress("export and measure", 0.0)
    out.mkdir(parents=True, exist_ok=True)
    trained.save(out / "subnet")
    trained.export_onnx(out / "model.onnx")
    reloaded = load(out / "subnet")
    _same(trained.module(data.test_x), reloaded.module(data.test_x))
    runtime = _runtime_accuracy(out / "model.onnx", data)
    models: dict[str, nn.Module] = {"full model": full, **{name: s.module for name, s in subnets.items()}}
    speed = latencies(models, data.test_x[:BATCH])
    rows = _rows(models, subnets, data, speed)
    summary = {
        "rows": [asdict(row) for row in rows],
        "budget": BUDGET,
        "latency": f"median microseconds per image at batch {BATCH}, 1 thread, torch {torch.__version__}",
        "macs_achieved": rows[1].macs / rows[0].macs,
        "onnxruntime_accuracy": runtime,
        "seconds": round(time.perf_counter() - began, 1),
        "files": ["subnet/", "model.onnx", "summary.json"],
    }
    write_text(out / "summary.json", json.dumps(summary, indent=2))
    progress("export and measure", 1.0)
    return summary


def _adamw(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=DECAY)


def _one_shot(full: nn.Module, data: Data, seed: int, progress: Progress) -> Subnet:
    """Cut the trained model by Taylor scores, recalibrate, and train the small model a little further."""
    model = copy.deepcopy(full)
    space = build_space(trace(model, data.train_x[:2]))
    calibration = [(data.train_x[:512], data.train_y[:512])]
    subnet = recalibrate(extract(space, prune(space, BUDGET, "taylor", calibration)), calibration)
    train(
        subnet.module, data, _adamw(subnet.module, RATE / 3), TUNE_EPOCHS, seed,
        lambda f: progress("fine-tune the one-shot subnet", f),
    )  # fmt: skip
    return subnet


def _rows(models: dict[str, nn.Module], subnets: dict[str, Subnet], data: Data, speed: dict[str, float]) -> list[Row]:
    costs = {name: s.receipt["costs"] for name, s in subnets.items()}
    before = next(iter(costs.values()))
    rows = []
    for name, model in models.items():
        metric = {m: (before[m]["before"] if name not in costs else costs[name][m]["after"]) for m in before}
        error = subnets[name].receipt["equivalence"]["error"] if name in subnets else None
        rows.append(
            Row(
                name,
                accuracy(model, data),
                int(metric["params"]),
                int(metric["macs"]),
                int(metric["bytes"]),
                speed[name],
                error,
            )
        )
    return rows


def _runtime_accuracy(path: Path, data: Data) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: data.test_x.numpy()})[0]
    return float((np.asarray(logits).argmax(1) == data.test_y.numpy()).mean())


def _same(a: Tensor, b: Tensor) -> None:
    gap = float((a - b).detach().abs().max())
    if gap > 1e-4:
        raise EquivalenceError(f"the reloaded subnet differs by {gap:.2g}", error=gap, place="coppice demo")
