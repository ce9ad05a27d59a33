"""VGG16-BN and ResNet-18 on lossy CIFAR-10, on one GPU, at the budgets of the OTO papers.

    PYTHONPATH=VIEW:benchmarks python -m quality.gpu --data FOLDER/cifar10_jpeg.npz --out out/gpu

VIEW is a folder with a link ``coppice`` to the repository root: nothing needs to be installed, the C library is not
used. Each arm trains in a process of its own (``--jobs`` at once on the one GPU) from the same start for the same
number of steps, in bf16 autocast. Arms: ``dense``, the full network, and coppice's sparse optimizers (``dhspg``,
``hesso``, ``h2spg``), which train once and are cut at the end. ``--limits both`` asks for the paper's parameters
too, not only its MACs.

A run that is stopped goes on from its last checkpoint when the same command is given again. ``--seconds 560`` saves and
stops by itself before a time limit does it; the exit code is then 3. Results are printed, one JSON line each, and kept
in ``OUT/results.jsonl``. ``--device cpu --samples 512 --epochs 1`` tries everything in a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import coppice
from quality.images import DATA, FILE, Images, augment, load, standardise
from quality.nets import VGG, resnet18

NETS: dict[str, Callable[[], nn.Module]] = {"vgg16_bn": VGG, "resnet18": resnet18}
BUDGETS = {"vgg16_bn": {"macs": "26.6%", "params": "5.0%"}, "resnet18": {"macs": "20.3%", "params": "8.8%"}}
"""What the subnets of the OTO papers cost; ``--limits macs`` asks for the first alone."""

ARMS = {"dense": "", "dhspg": "DHSPG", "hesso": "HESSO", "h2spg": "H2SPG"}
SAVE_EVERY, SAMPLE_EVERY, UNFINISHED = 45.0, 50, 3


def main() -> int:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.job:
        return Job(options, *options.job.split("/")).run()
    load(options.data, options.out / "cifar10.npz")
    absent = [arm for arm in options.arms if ARMS[arm] and not hasattr(coppice, ARMS[arm])]
    if absent:
        print(f"left out, not in this coppice: {', '.join(absent)}", file=sys.stderr)
    arms = [arm for arm in options.arms if arm not in absent]
    jobs = [f"{net}/{arm}/{seed}" for seed in options.seeds for net in options.nets for arm in arms]
    codes = _spawn(jobs, options.jobs)
    _report(options.out, jobs)
    return max(codes, default=0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="quality.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA / FILE, help="cifar10_jpeg.npz")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="checkpoints, decoded images, results")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["dense", "dhspg"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limits", choices=("macs", "both"), default="macs")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=0.4, help="peak learning rate")
    parser.add_argument("--start", type=float, help="where the penalty starts, as a fraction of the steps")
    parser.add_argument("--stop", type=float, help="where it ends")
    parser.add_argument("--jobs", type=int, default=4, help="processes at once")
    parser.add_argument("--seconds", type=float, default=math.inf, help="save and stop after so long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=int, default=50_000, help="training images, and at most as many test ones")
    parser.add_argument("--again", action="store_true", help="start anew, whatever OUT holds")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def _spawn(jobs: list[str], at_once: int) -> list[int]:
    """Exit codes of one process per job, at most ``at_once`` of them alive."""
    waiting, alive, codes = list(jobs), list[subprocess.Popen[bytes]](), list[int]()
    while waiting or alive:
        while waiting and len(alive) < at_once:
            command = [sys.executable, "-m", "quality.gpu", *sys.argv[1:], "--job", waiting.pop(0)]
            alive.append(subprocess.Popen(command))
        time.sleep(0.2)
        codes += [p.returncode for p in alive if p.poll() is not None]
        alive = [p for p in alive if p.returncode is None]
    return codes


def _report(out: Path, jobs: list[str]) -> None:
    """Print what is finished, with the drop against the dense network of the same seed, and write it to one file."""
    rows = [json.loads(file.read_text()) for job in jobs if (file := _result(out, job)).exists()]
    dense = {(row["net"], row["seed"]): row["accuracy"] for row in rows if row["arm"] == "dense"}
    for row in rows:
        row["accuracy_dense"] = dense.get((row["net"], row["seed"]))
        if row["accuracy_dense"]:
            row["relative_drop"] = round(1 - row["accuracy"] / row["accuracy_dense"], 5)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (out / "results.jsonl").write_text(text, encoding="utf-8")
    print(text, end="", flush=True)


def _result(out: Path, job: str) -> Path:
    return out / f"{job.replace('/', '-')}.json"


class Job:
    """One arm on one network: train, cut, evaluate. Its state is a checkpoint that any later process takes up."""

    def __init__(self, options: argparse.Namespace, net: str, arm: str, seed: str) -> None:
        self.options, self.net, self.arm, self.seed = options, net, arm, int(seed)
        self.name = f"{net}/{arm}/{seed}"
        self.device = torch.device(options.device)
        self.result = _result(options.out, self.name)
        self.checkpoint = self.result.with_suffix(".pt")
        if options.again:
            self.result.unlink(missing_ok=True)
            self.checkpoint.unlink(missing_ok=True)
        self.began = time.perf_counter()
        self.seconds = 0.0  # of training, over all processes that worked on it
        self.timed: dict[str, list[list[float]]] = {}

    def run(self) -> int:
        if self.result.exists():
            return 0
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.options.jobs))
        self.data = load(self.options.data, self.options.out / "cifar10.npz").to(self.options.device)
        samples = min(self.options.samples, len(self.data.train_x))
        self.data = Images(*(t[:samples] for t in vars(self.data).values()))
        self.per_epoch = max(1, samples // self.options.batch)
        self.steps = self.options.epochs * self.per_epoch
        self._build()
        done = self._load()
        if not self._train(done):
            return UNFINISHED
        self._finish()
        return 0

    def _build(self) -> None:
        torch.manual_seed(self.seed)
        self.model = NETS[self.net]()
        self.space = coppice.build_space(coppice.trace(self.model, torch.zeros(2, 3, 32, 32)))
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        base = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self.optimizer: torch.optim.Optimizer = base
        if self.arm != "dense":
            asked = {k: getattr(self.options, k) for k in ("start", "stop") if getattr(self.options, k) is not None}
            maker = getattr(coppice, ARMS[self.arm])
            self.optimizer = maker(self.space, base, self._budget(), steps=self.steps, **asked)

    def _budget(self) -> dict[str, str]:
        whole = BUDGETS[self.net]
        return whole if self.options.limits == "both" else {"macs": whole["macs"]}

    # ---- training --------------------------------------------------------------------------------------------------

    def _train(self, done: int) -> bool:
        """Train to the end, or save and return False when the time is up."""
        spent, saved = self.seconds, time.perf_counter()
        started = saved
        self.model.train()
        for epoch in range(done // self.per_epoch, self.options.epochs):
            generator = torch.Generator(self.device).manual_seed(100_003 * self.seed + epoch)
            order = torch.randperm(len(self.data.train_x), generator=generator, device=self.device)
            total = torch.zeros((), device=self.device)
            for k in range(self.per_epoch):
                total += self._step(epoch * self.per_epoch + k, order[k * self.options.batch :], generator)
            loss = float(total) / self.per_epoch  # waits for the device
            now = time.perf_counter()
            self.seconds = spent + now - started
            if not math.isfinite(loss):
                raise SystemExit(f"{self.name}: the loss is {loss} in epoch {epoch}")
            if epoch % 5 == 4 or self.options.epochs < 10:
                self._say(f"epoch {epoch + 1}/{self.options.epochs} loss {loss:.4f} {self.seconds:.0f} s")
            over = now - self.began > self.options.seconds
            if over or now - saved > SAVE_EVERY:
                self._save((epoch + 1) * self.per_epoch)
                saved = now
            if over and epoch + 1 < self.options.epochs:
                return False
        return True

    def _step(self, step: int, at: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One step on the first ``batch`` samples of ``at``; every few steps the optimizer's part is timed."""
        at = at[: self.options.batch]
        rate = one_cycle(step / self.steps, self.options.rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sample = step % SAMPLE_EVERY == SAMPLE_EVERY - 1
        begin = self._clock() if sample else 0.0
        x = standardise(augment(self.data.train_x[at], generator)).to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = F.cross_entropy(self.model(x), self.data.train_y[at])
        self.optimizer.zero_grad()
        loss.backward()
        middle = self._clock() if sample else 0.0
        self.optimizer.step()
        if sample:
            tenth = f"{10 * step // self.steps / 10:.1f}"
            self.timed.setdefault(tenth, []).append([middle - begin, self._clock() - middle])
        return loss.detach()

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _say(self, text: str) -> None:
        progress = getattr(self.optimizer, "progress", "")
        print(f"{self.name}: {text} {progress or ''}", file=sys.stderr, flush=True)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        names = ("epochs", "batch", "rate", "samples", "limits", "start", "stop")
        return {name: getattr(self.options, name) for name in names}

    def _save(self, step: int) -> None:
        state = {
            "settings": self._settings(),
            "step": step,
            "seconds": self.seconds,
            "timed": self.timed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def _load(self) -> int:
        """The number of steps done, the model and optimizer as they were then; 0 without a checkpoint."""
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["settings"] != self._settings():
            raise SystemExit(
                f"{self.checkpoint} was made with other settings: {state['settings']}; give --again or --out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seconds, self.timed = state["seconds"], state["timed"]
        self._say(f"goes on at step {state['step']} of {self.steps}")
        return int(state["step"])

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        accuracy = self._accuracy(self.model)
        full = self.space.cost(self.space.full())
        row: dict[str, Any] = {
            "net": self.net, "arm": self.arm, "seed": self.seed, "accuracy": accuracy, "macs": 1.0, "params": 1.0,
            "equivalence_error": None, "full_macs": float(full["macs"][0]), "full_params": float(full["params"][0]),
        }  # fmt: skip
        if self.arm != "dense":
            self.model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            config = self.optimizer.config()  # type: ignore[attr-defined]
            subnet = coppice.extract(self.space, config)
            costs = subnet.receipt["costs"]
            row |= {
                "accuracy_full_model": accuracy,
                "accuracy": self._accuracy(subnet.module.to(self.device)),
                **{m: round(costs[m]["after"] / costs[m]["before"], 5) for m in ("macs", "params")},
                "equivalence_error": subnet.receipt["equivalence"]["error"],
                "widths": subnet.receipt["widths"],
            }
        row["seconds"] = round(self.seconds, 1)
        row["milliseconds"] = {  # per step, by tenth of the training: forward and backward, optimizer
            tenth: [round(1e3 * statistics.median(part), 2) for part in zip(*pairs, strict=True)]
            for tenth, pairs in self.timed.items()
        }
        row |= {"settings": self._settings(), "torch": torch.__version__, "steps": self.steps}
        self.result.write_text(json.dumps(row), encoding="utf-8")
        self.checkpoint.unlink(missing_ok=True)
        self._say(f"accuracy {row['accuracy']:.4f} at {row['macs']:.2%} MACs")

    @torch.no_grad()
    def _accuracy(self, model: nn.Module) -> float:
        """On the test images, in fp32."""
        model.eval()
        hits = 0
        for x, y in zip(torch.split(self.data.test_x, 1000), torch.split(self.data.test_y, 1000), strict=True):
            hits += int((model(standardise(x)).argmax(1) == y).sum())
        return hits / len(self.data.test_x)


def one_cycle(done: float, peak: float, warm: float = 0.2) -> float:
    """Linear to ``peak`` over the first ``warm`` of the training, then along half a cosine to zero."""
    if done < warm:
        return peak * (0.05 + 0.95 * done / warm)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


if __name__ == "__main__":
    sys.exit(main())
