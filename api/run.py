"""`Run`: a training run with a folder of its own, that goes on where it was killed."""

from __future__ import annotations

import fcntl
import hashlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from torch import nn
from torch.optim import Optimizer

import coppice
from coppice.core.config import Config
from coppice.core.cost import METRICS
from coppice.core.errors import UsageError
from coppice.core.files import write_text
from coppice.core.space import Space
from coppice.passes.train.plot import plot_run
from coppice.passes.train.progress import progress_bar
from coppice.passes.train.record import (
    Metrics,
    load_checkpoint,
    plain,
    random_state,
    read_metrics,
    save_checkpoint,
    set_random_state,
)
from coppice.passes.train.transfer import unwrapped

CONFIG, METRICS_FILE, CHECKPOINT, PLOT, LOCK = "run.yaml", "metrics.jsonl", "checkpoint.pt", "plot.html", ".lock"
POINTS = 200
"""How often in a run the cost reached is worked out, which reads all weights."""
MAX_YAML = 1 << 20


class Stateful(Protocol):
    """What a checkpoint can hold: anything with a state to save and to load."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Run:
    """A folder that records a training run, and from which the same call goes on with it::

        run = coppice.Run("out/run", optimizer, model, schedulers=[schedule], settings={"rate": 1e-3})
        for step in run.steps():
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            run.log(loss=loss)
        run.plot()

    The folder holds ``run.yaml`` (the effective settings), ``metrics.jsonl`` (a line for each logged step: what was
    logged, ``lr``, ``seconds``, units ``redundant`` and ``zero``, and now and then the ``cost`` with the units that are
    zero removed, and the ``target``, as fractions of the full model) and ``checkpoint.pt`` (model, optimizer,
    schedulers, ``extra`` and random states; written every ``every`` steps, whole or not at all, and read with
    ``weights_only``).

    Run the same script again after a crash or kill -9: model, optimizer, schedulers and ``extra`` (anything with
    ``state_dict`` and ``load_state_dict``: an average, a GradScaler, a sampler) are loaded here, `steps` begins at the
    last checkpoint with the random states of then, and the result is identical, if batches depend on the step, on
    torch's, numpy's or Python's global generators, or on what is in ``extra``.

    ``optimizer`` may be DHSPG and its like, or any optimizer of torch with ``steps`` given. One process writes to a
    folder at a time. Raises `UsageError` for a folder of another model, optimizer or ``settings``, or that is no run.
    """

    def __init__(
        self,
        folder: str | Path,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        steps: int | None = None,
        schedulers: Sequence[Any] = (),
        extra: Mapping[str, Stateful] | None = None,
        settings: Mapping[str, Any] | None = None,
        every: int = 100,
        progress: bool = True,
    ) -> None:
        self.folder, self.optimizer, self.every, self.progress = Path(folder), optimizer, every, progress
        total = steps if steps is not None else getattr(optimizer, "steps", None)
        if not isinstance(total, int) or total < 1 or not isinstance(every, int) or every < 1:
            raise UsageError(
                f"steps={total} and every={every} are no numbers of steps",
                place="Run",
                remedy="give the number of optimizer steps of the whole training",
            )
        self.total: int = total
        space = getattr(optimizer, "space", None)
        self.space = space if isinstance(space, Space) else None
        self.parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
        self.parts |= {f"scheduler {k}": scheduler for k, scheduler in enumerate(schedulers)}
        self.parts |= {f"extra {name}": part for name, part in (extra or {}).items()}
        self.step, self.seconds = 0, 0.0
        self._random: dict[str, Any] | None = None
        self._metrics: Metrics | None = None
        self._line: dict[str, Any] = {}
        self._began = 0.0
        self._open(self._effective(model, schedulers, settings))

    # ---- the loop ------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """The steps that are still to do, from 0; checkpoints are written between them."""
        if self._metrics is not None:
            raise UsageError("its steps are being done already", place=str(self.folder), remedy="loop over them once")
        with ExitStack() as stack:
            lock = stack.enter_context((self.folder / LOCK).open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(
                    "another process writes to this run", place=str(self.folder), remedy="wait for it, or end it"
                ) from None
            self._metrics = Metrics(self.folder / METRICS_FILE, self.step)
            stack.callback(self._close)
            if self._random is not None:
                set_random_state(self._random)
            self._began = time.monotonic() - self.seconds
            if self.step == 0:
                self._save(check=True)  # now: what cannot be saved should not be found out after hours
            show = stack.enter_context(progress_bar(self.total, self.step, self.progress))
            while self.step < self.total:
                self._line = {}
                yield self.step
                if self._line:
                    self._metrics.append(self._line)
                self.step += 1
                show(self.step, self._line)
                if self.step % self.every == 0 or self.step == self.total:
                    self._save()

    def log(self, **values: Any) -> None:
        """Record numbers for the present step: floats, ints, or tensors that hold one. Call it once a step or more."""
        if self._metrics is None:
            raise UsageError(
                "no step is being done", place="Run.log", remedy="call it inside `for step in run.steps():`"
            )
        if not self._line:
            self._line = {"step": self.step} | self._standing()
        for name in values:
            if name in ("step", "lr", "seconds", "cost", "target", "redundant", "zero"):
                raise UsageError(f"{name} is recorded by itself", place="Run.log", remedy="choose another name")
        self._line |= {name: plain(name, value) for name, value in values.items()}

    def metrics(self) -> list[dict[str, Any]]:
        """The lines recorded so far, oldest first."""
        path = self.folder / METRICS_FILE
        return read_metrics(path) if path.exists() else []

    def plot(self, path: str | Path | None = None) -> Path:
        """Draw the run as one self-contained HTML page, by default ``plot.html`` in its folder; needs plotly."""
        path = self.folder / PLOT if path is None else Path(path)
        write_text(path, plot_run(self.metrics(), title=self.folder.name))
        return path

    # ---- what is recorded ----------------------------------------------------------------------------------------

    def _standing(self) -> dict[str, Any]:
        """Learning rates (one number, or one for each group), seconds, and what the sparse optimizer has reached."""
        rates = [float(group["lr"]) for group in self.optimizer.param_groups if "lr" in group]
        line: dict[str, Any] = {"lr": rates[0] if len(set(rates)) == 1 else rates}
        line["seconds"] = round(time.monotonic() - self._began, 3)
        progress = getattr(self.optimizer, "progress", None)
        if isinstance(progress, Mapping):
            line |= {name: int(progress[name]) for name in ("redundant", "zero") if name in progress}
        last = self.step == self.total - 1
        if self.space is not None and (last or self.step % max(self.total // POINTS, 1) == 0):
            line |= self._costs(self.space, bool(line.get("redundant")))
        return line

    def _costs(self, space: Space, chosen: bool) -> dict[str, Any]:
        """What the model would cost with its zero units removed, and with all redundant ones, of the full model."""
        sizes = space.magnitudes()
        widths = [max(int((sizes[f.name] > 0).sum()), 1) for f in space.families]
        config = self._config() if chosen else space.full()
        erased = [name for name in config.skip if self._is_zero(space, name)]
        full = space.cost(space.full())
        costs = {"cost": space.cost(np.array([widths], np.int64), erased)}
        costs |= {"target": space.cost(config)} if chosen else {}
        return {k: {m: round(float(cost[m][0] / full[m][0]), 6) for m in METRICS} for k, cost in costs.items()}

    def _config(self) -> Config:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is not final yet is what the record shows
            config: Config = self.optimizer.config()  # type: ignore[attr-defined]
        return config

    def _is_zero(self, space: Space, segment: str) -> bool:
        own = space.dead_tensors([segment])
        return not any(bool(p.detach().any()) for name, p in space.graph.parameters().items() if name in own)

    # ---- the folder ----------------------------------------------------------------------------------------------

    def _effective(self, model: nn.Module, schedulers: Sequence[Any], settings: Mapping[str, Any] | None) -> Any:
        names = repr([(n, tuple(t.shape), str(t.dtype)) for n, t in model.state_dict().items()])
        base = unwrapped(self.optimizer)
        config: dict[str, Any] = {
            "model": {"class": type(model).__name__, "tensors": hashlib.sha256(names.encode()).hexdigest()[:16]},
            "optimizer": [type(o).__name__ for o in dict.fromkeys((self.optimizer, base))],
            "groups": [len(group["params"]) for group in base.param_groups],
            "schedulers": [type(scheduler).__name__ for scheduler in schedulers],
            "extra": sorted(name for name in self.parts if name.startswith("extra ")),
            "steps": self.total,
            "settings": dict(settings or {}),
        }
        if self.space is not None:
            config["space"] = self.space.fingerprint
        try:
            return yaml.safe_load(yaml.safe_dump(config))
        except yaml.YAMLError:
            raise UsageError(
                "settings hold something that is no plain data",
                place="Run",
                remedy="give numbers, text, lists and dicts",
            ) from None

    def _open(self, config: dict[str, Any]) -> None:
        """Begin in a new folder, or load what the folder holds; the versions that wrote it are kept for the record."""
        path, checkpoint = self.folder / CONFIG, self.folder / CHECKPOINT
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise UsageError(
                    "the folder holds something that is not a run", place=str(self.folder), remedy="give a new folder"
                )
            versions = {"coppice": coppice.__version__, "torch": str(torch.__version__)}
            write_text(path, yaml.safe_dump({**config, "versions": versions}, sort_keys=False, allow_unicode=True))
            return
        stored = _read(path)
        stored.pop("versions", None)
        for key, (here, there) in _differences(config, stored).items():
            raise UsageError(
                f"{key} is {here!r} here and {there!r} in the folder",
                place=str(self.folder),
                remedy="go on with the same model, optimizer and settings, or start in a new folder",
            )
        if not checkpoint.is_file():
            return
        state = load_checkpoint(checkpoint)
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.step, self.seconds, self._random = int(state["step"]), float(state["seconds"]), state["random"]

    def _save(self, check: bool = False) -> None:
        assert self._metrics is not None
        self._metrics.sync()
        self.seconds = time.monotonic() - self._began
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "random": random_state(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        save_checkpoint(self.folder / CHECKPOINT, state, check)

    def _close(self) -> None:
        assert self._metrics is not None
        self._metrics.close()
        self._metrics = None


def _read(path: Path) -> dict[str, Any]:
    data = None
    if path.stat().st_size <= MAX_YAML:
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError):
            data = None
    if not isinstance(data, dict):
        raise UsageError("it is no settings file of a run", place=str(path), remedy="start in a new folder")
    return data


def _differences(here: Any, there: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two trees of settings differ: dotted key -> (here, there)."""
    if not isinstance(here, dict) or not isinstance(there, dict):
        return {} if here == there else {key: (here, there)}
    result: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys((*here, *there)):
        result |= _differences(here.get(name), there.get(name), f"{key}.{name}" if key else str(name))
    return result
