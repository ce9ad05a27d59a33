"""The record of a run: what the folder holds, going on after kill -9, and folders that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from coppice import DHSPG, H2SPG, Run, UnsupportedError, UsageError, build_space, trace
from coppice.passes.train.progress import described
from coppice.passes.train.record import load_checkpoint, read_metrics
from zoo import MODELS

STEPS = 20


def parts(steps: int = STEPS, width: int = 16) -> tuple[nn.Module, DHSPG, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(width, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip
    space = build_space(trace(model, torch.randn(4, 6)))
    base = torch.optim.AdamW(model.train().parameters(), lr=0.01)
    optimizer = DHSPG(space, base, {"macs": "50%"}, steps=steps)
    return model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)


def begin(folder: Path, steps: int = STEPS, every: int = 7, **options: Any) -> tuple[Run, nn.Module, Any, DHSPG]:
    model, optimizer, schedule = parts(steps)
    run = Run(folder, optimizer, model, schedulers=[schedule], every=every, **options)
    return run, model, schedule, optimizer


def train(folder: Path, until: int = STEPS, **options: Any) -> tuple[Run, nn.Module]:
    """The loop of a user; batches and dropout come from torch's global generator."""
    run, model, schedule, optimizer = begin(folder, **options)
    for step in run.steps():
        if step == until:
            break
        x = torch.randn(32, 6)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        run.log(loss=loss, accuracy=0.5)
    return run, model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


def lines_without_time(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics()]


def test_the_folder_holds_the_run(tmp_path: Path) -> None:
    run, _ = train(tmp_path / "run", settings={"rate": 0.01, "data": "noise"})
    assert {f.name for f in run.folder.iterdir()} == {"run.yaml", "metrics.jsonl", "checkpoint.pt", ".lock"}
    config = yaml.safe_load((run.folder / "run.yaml").read_text())
    assert config["settings"] == {"rate": 0.01, "data": "noise"}
    assert config["optimizer"] == ["DHSPG", "AdamW"]
    assert config["steps"] == STEPS
    lines = run.metrics()
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert all(isinstance(line["loss"], float) and line["accuracy"] == 0.5 for line in lines)
    assert len({line["lr"] for line in lines}) > 10
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert lines[0]["zero"] == 0
    assert lines[0]["cost"] == {"params": 1.0, "macs": 1.0, "bytes": 1.0}
    assert "target" not in lines[0], "asking for the config during warm-up would choose it"
    last = lines[-1]
    assert last["zero"] == last["redundant"] > 0
    assert last["cost"] == last["target"]
    assert last["cost"]["macs"] <= 0.5
    assert load_checkpoint(run.folder / "checkpoint.pt")["step"] == STEPS


def test_erased_segments_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS["digits"].build().train()
    space = build_space(trace(model, torch.randn(2, 1, 8, 8)))
    optimizer = H2SPG(space, torch.optim.SGD(model.parameters(), lr=0.01), {"macs": "30%"}, steps=12)
    run = Run(tmp_path / "run", optimizer, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the record may ask for a config that is not final
        for _ in run.steps():
            optimizer.zero_grad()
            torch.autograd.backward(model(torch.randn(8, 1, 8, 8)).square().mean())
            optimizer.step()
            run.log()
    assert optimizer.config().skip
    last = run.metrics()[-1]
    assert last["cost"] == last["target"]
    assert 0 < last["target"]["macs"] <= 0.3


def test_asking_does_not_change_the_training(tmp_path: Path) -> None:
    """The same loop without a run ends with the same weights."""
    _, recorded = train(tmp_path / "run")
    model, optimizer, schedule = parts()
    for _ in range(STEPS):
        x = torch.randn(32, 6)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x), x[:, :3].argmax(1)))
        optimizer.step()
        schedule.step()
    assert same(model, recorded)


@pytest.mark.parametrize("until", [0, 1, 6, 7, 13, 19])
def test_a_run_that_stopped_goes_on_to_the_identical_result(tmp_path: Path, until: int) -> None:
    whole, expected = train(tmp_path / "whole")
    train(tmp_path / "run", until)
    torch.manual_seed(99)
    run, model = train(tmp_path / "run")
    assert same(model, expected)
    assert lines_without_time(run) == lines_without_time(whole)
    assert list(run.steps()) == [], "it is done"


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from train import test_run

torch.set_num_threads(1)
folder, draw = Path(sys.argv[2]), random.Random(7)
test_run.parts()  # what tracing imports, once for all children

def child(kill):
    steps = iter(range(10**6))
    original = test_run.Run.log
    def log(self, **values):
        original(self, **values)
        if self.step >= kill[0] and not kill[1]:
            os.kill(os.getpid(), signal.SIGKILL)
    save = test_run.Run._save
    def saving(self, check=False):
        if self.step >= kill[0] and kill[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, check)
    test_run.Run.log, test_run.Run._save = log, saving
    test_run.train(folder, 10**6, steps=60, every=5)

for at in sorted(draw.sample(range(59), 10)):
    process = os.fork()
    if not process:
        child((at, draw.random() < 0.3))
        os._exit(3)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (at, status)
    print(at, flush=True)
"""


@pytest.mark.slow
def test_killed_at_ten_random_steps_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """A process of its own each time, killed with SIGKILL in the middle of a step or before a checkpoint."""
    tests = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tests), str(tmp_path / "killed")],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kills = [int(line) for line in done.stdout.split()]
    assert len(kills) == 10
    assert kills[-1] - kills[0] > 20
    whole, expected = train(tmp_path / "whole", 60, steps=60)
    killed, model = train(tmp_path / "killed", 60, steps=60, every=5)
    assert same(model, expected)
    assert lines_without_time(killed) == lines_without_time(whole)


def test_extra_state_goes_on_too(tmp_path: Path) -> None:
    def average() -> Any:
        return torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))

    first = average()
    run, *_ = begin(tmp_path / "run", extra={"average": first})
    for step in run.steps():
        first.module.weight.data.fill_(step)
        run.log(step_is=step)
    second = average()
    begin(tmp_path / "run", extra={"average": second})
    assert torch.equal(first.module.weight, second.module.weight)
    assert float(second.module.weight[0, 0]) == STEPS - 1


def test_a_plain_optimizer_needs_the_number_of_steps(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    groups: list[dict[str, Any]] = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(UsageError, match="steps=None and every=100"):
        Run(tmp_path / "run", optimizer, model)
    run = Run(tmp_path / "run", optimizer, model, steps=3, progress=False)
    for _ in run.steps():
        run.log(loss=torch.tensor(float("nan")))
        run.log(count=3)
    assert run.metrics()[-1] | {"seconds": 0} == {"step": 2, "lr": [0.1, 0.5], "seconds": 0, "loss": "nan", "count": 3}


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", settings={"rate": 0.01})
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    cases: list[tuple[Any, str]] = [
        ({"settings": {"rate": 0.02}}, r"settings\.rate is 0\.02 here and 0\.01 in the folder"),
        ({"settings": {"rate": 0.01}, "extra": {"x": nn.Linear(1, 1)}}, "extra is"),
        ({"settings": {"rate": 0.01}, "steps": 21}, "steps is 21 here and 20 in the folder"),
    ]
    for options, message in cases:
        with pytest.raises(UsageError, match=message):
            begin(tmp_path / "run", **options)
    model, optimizer, _ = parts(width=18)
    with pytest.raises(UsageError, match=r"model\.tensors is"):
        Run(tmp_path / "run", optimizer, model, settings={"rate": 0.01})
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something that is not a run"):
        begin(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("checkpoint.pt", b"no checkpoint", "it cannot be read"),
        ("run.yaml", b"- a list", "it is no settings file"),
        ("run.yaml", b"\xff\xfe", "it is no settings file"),
        ("metrics.jsonl", b'{"step": 0}\n[]\n{"step": 1}\n', "line 2 is no JSON object"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    train(tmp_path / "run", 3)
    (tmp_path / "run" / name).write_bytes(data)
    with pytest.raises(UsageError, match=message):
        list(begin(tmp_path / "run")[0].steps())


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("false",)


def test_nothing_but_plain_data_is_unpickled(tmp_path: Path) -> None:
    train(tmp_path / "run", 3)
    torch.save({"step": 0, "seconds": 0.0, "random": {}, "parts": Hostile()}, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(UsageError, match="it cannot be read"):
        begin(tmp_path / "run")


def test_a_line_that_was_not_finished_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    assert read_metrics(path) == [{"step": 0, "loss": 1.0}]


class Odd:
    """Its state is more than plain data."""

    def state_dict(self) -> dict[str, Any]:
        return {"odd": self}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_a_state_that_could_not_be_read_back_is_refused_before_the_first_step(tmp_path: Path) -> None:
    run, *_ = begin(tmp_path / "run", extra={"odd": Odd()})
    with pytest.raises(UnsupportedError, match="holds more than tensors, numbers and text"):
        next(run.steps())
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    one, *_ = begin(tmp_path / "run")
    two, *_ = begin(tmp_path / "run")
    steps = one.steps()
    next(steps)
    with pytest.raises(UsageError, match="another process writes to this run"):
        next(two.steps())
    with pytest.raises(UsageError, match="its steps are being done already"):
        next(one.steps())


def test_bad_metrics(tmp_path: Path) -> None:
    run, *_ = begin(tmp_path / "run")
    with pytest.raises(UsageError, match="no step is being done"):
        run.log(loss=1.0)
    next(iter(run.steps()))
    run, *_ = begin(tmp_path / "other")
    steps = run.steps()
    next(steps)
    for values, message in (
        ({"loss": torch.zeros(2)}, "it is a Tensor"),
        ({"loss": "low"}, "it is a str"),
        ({"done": True}, "it is a bool"),
        ({"lr": 0.1}, "lr is recorded by itself"),
    ):
        with pytest.raises(UsageError, match=message):
            run.log(**values)
    with pytest.raises(UsageError, match="no plain data"):
        begin(tmp_path / "third", settings={"model": nn.Linear(1, 1)})


# ---- seen ------------------------------------------------------------------------------------------------------------


def test_the_plot_is_one_page_that_needs_nothing_else(tmp_path: Path) -> None:
    run, _ = train(tmp_path / "<b>run</b>")
    page = run.plot().read_text()
    assert page.count("<html>") == 1
    assert 'src="http' not in page
    assert "<b>run</b>" not in page
    for name in ("redundant", "zero", "macs, target", "loss", "accuracy", '"lr"'):
        assert name in page
    other = run.plot(tmp_path / "other.html")
    assert other.stat().st_size > 1_000_000, "plotly itself is inside"


def test_a_plot_of_nothing_and_without_plotly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, *_ = begin(tmp_path / "run")
    with pytest.raises(UsageError, match="nothing was logged"):
        run.plot()
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"step": 0, "loss": 1.0}) + "\n")
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(UnsupportedError, match="needs plotly") as caught:
        run.plot()
    assert "coppice[plot]" in caught.value.remedy


def test_the_progress_bar_says_what_was_logged() -> None:
    line = {"step": 3, "lr": 0.1, "seconds": 1.0, "loss": 0.314159, "count": 2, "redundant": 48, "zero": 12}
    assert described(line) == "loss 0.3142 · count 2 · zero 12 of 48"
