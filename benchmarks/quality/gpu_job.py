"""One arm on one network on a GPU: train, cut, evaluate; its checkpoint is taken up by any later process."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import coppice
from quality.images import Images, augment, load, standardise
from quality.nets import VGG, resnet18
from quality.task import one_cycle

NETS: dict[str, Callable[[], nn.Module]] = {"vgg16_bn": VGG, "resnet18": resnet18}
BUDGETS = {"vgg16_bn": {"macs": "26.6%", "params": "5.0%"}, "resnet18": {"macs": "20.3%", "params": "8.8%"}}
"""What the subnets of the OTO papers cost; ``--limits macs`` asks for the first alone."""

RATES = {"vgg16_bn": 0.1, "resnet18": 0.4}
"""Peak learning rates at a batch of 512. VGG's hidden layers have no norm and do not start at more."""

ARMS = {"dense": "", "dhspg": "DHSPG", "hesso": "HESSO", "h2spg": "H2SPG"}
SAVE_EVERY, SAMPLE_EVERY, UNFINISHED = 45.0, 47, 3  # 47: strides of an optimizer are no multiples of it


def result_file(out: Path, job: str) -> Path:
    return out / f"{job.replace('/', '-')}.json"


class Job:
    """One arm on one network with one seed, by the options of `quality.gpu`. `run` gives the exit code."""

    def __init__(self, options: argparse.Namespace, net: str, arm: str, seed: str) -> None:
        self.options, self.net, self.arm, self.seed = options, net, arm, int(seed)
        self.name = f"{net}/{arm}/{seed}"
        self.rate = RATES[net] if options.rate is None else options.rate
        self.device = torch.device(options.device)
        self.result = result_file(options.out, self.name)
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
        rate = one_cycle(step / self.steps, self.rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sample = step % SAMPLE_EVERY == SAMPLE_EVERY - 1
        begin = self._clock() if sample else 0.0
        x = standardise(augment(self.data.train_x[at], generator)).to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = F.cross_entropy(self.model(x), self.data.train_y[at])
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
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
        names = ("epochs", "batch", "samples", "limits", "start", "stop")
        return {name: getattr(self.options, name) for name in names} | {"rate": self.rate}

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
        row["milliseconds"] = {  # per step, by tenth of the training
            tenth: {
                "forward_backward": round(1e3 * statistics.median(step for step, _ in pairs), 2),
                "optimizer": round(1e3 * statistics.median(step for _, step in pairs), 2),
                "optimizer_most": round(1e3 * max(step for _, step in pairs), 2),
            }
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
