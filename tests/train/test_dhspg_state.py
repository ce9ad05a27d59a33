"""DHSPG in a training script: saved and loaded, scheduled, scaled, repeated; nothing else of the loop changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedules

from coppice import DHSPG, UsageError
from train.loops import Base, Job, adam, adamw, job, nonzero_slices, same, sgd, snapshot

STAGES = {"before the first step": 0, "mid warm-up": 2, "at start": 3, "mid penalty": 6, "at stop": 9, "after stop": 10}


def finish(work: Job, first: int) -> tuple[Any, ...]:
    """Everything that could differ between two runs, once ``work`` has run from step ``first`` to its end."""
    work.train(range(first, work.optimizer.steps))
    moments = work.optimizer.base.state_dict()["state"]
    return snapshot(work.model), work.optimizer.config(), work.optimizer.progress, moments


def identical(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    moments = all(
        torch.equal(torch.as_tensor(x), torch.as_tensor(b[3][k][name]))
        for k, state in a[3].items()
        for name, x in state.items()
    )
    return same(a[0], b[0]) and a[1:3] == b[1:3] and a[3].keys() == b[3].keys() and moments


@pytest.mark.parametrize(("name", "base"), [("digits", adamw), ("mlp_bn", sgd), ("mlp_bn", adam)])
@pytest.mark.parametrize("at", STAGES.values(), ids=STAGES.keys())
def test_a_run_resumed_from_a_file_is_the_uninterrupted_run(tmp_path: Path, name: str, base: Base, at: int) -> None:
    work = job(name, base).train(range(at))
    torch.save({"model": work.model.state_dict(), "optimizer": work.optimizer.state_dict()}, tmp_path / "run.pt")
    expected = finish(work, at)

    resumed = job(name, base)
    stored = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.model.load_state_dict(stored["model"])
    resumed.optimizer.load_state_dict(stored["optimizer"])
    assert resumed.optimizer.progress["step"] == at
    assert identical(finish(resumed, at), expected)


def test_a_state_dict_does_not_change_with_further_training() -> None:
    work = job("mlp", adam).train(range(5))
    state = work.optimizer.state_dict()
    ours = copy.deepcopy(state["pruning"])
    work.train(range(5, 12))
    assert state["pruning"]["config"] == ours["config"]
    assert state["pruning"]["values"].keys() == ours["values"].keys()
    for key, value in ours["values"].items():
        assert torch.equal(torch.as_tensor(state["pruning"]["values"][key]), torch.as_tensor(value)), key


def test_a_schedule_of_the_learning_rate_survives_a_resume(tmp_path: Path) -> None:
    def scheduled() -> tuple[Job, schedules.LRScheduler]:
        work = job("digits", sgd)
        return work, schedules.OneCycleLR(work.optimizer, max_lr=0.1, total_steps=12)

    def run(work: Job, schedule: schedules.LRScheduler, steps: range) -> None:
        for step in steps:
            work.step(step)
            schedule.step()

    work, schedule = scheduled()
    run(work, schedule, range(7))
    parts: dict[str, Any] = {"model": work.model, "optimizer": work.optimizer, "schedule": schedule}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "run.pt")
    run(work, schedule, range(7, 12))

    resumed, other = scheduled()
    stored = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.model.load_state_dict(stored["model"])
    resumed.optimizer.load_state_dict(stored["optimizer"])
    other.load_state_dict(stored["schedule"])
    run(resumed, other, range(7, 12))
    assert same(snapshot(resumed.model), snapshot(work.model))
    assert other.get_last_lr() == schedule.get_last_lr()


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], schedules.LRScheduler]] = {
    "step": lambda o: schedules.StepLR(o, 2, 0.5),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 12),
    "one cycle": lambda o: schedules.OneCycleLR(o, max_lr=0.2, total_steps=13),
    "lambda": lambda o: schedules.LambdaLR(o, lambda k: 1 / (1 + k)),
    "sequence": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, total_iters=3), schedules.ExponentialLR(o, 0.9)], milestones=[3]
    ),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedulers_drive_the_base_optimizer(make: Callable[[torch.optim.Optimizer], schedules.LRScheduler]) -> None:
    work, plain = job("mlp", sgd), job("mlp", sgd).optimizer.base
    ours, theirs = make(work.optimizer), make(plain)
    for step in range(12):
        work.step(step)
        plain.step()
        ours.step()
        theirs.step()
        assert work.optimizer.base.param_groups[0]["lr"] == plain.param_groups[0]["lr"] == ours.get_last_lr()[0]
        assert work.optimizer.base.param_groups[0]["momentum"] == plain.param_groups[0]["momentum"]
    assert nonzero_slices(work.space, work.optimizer.config()) == []


def test_a_plateau_lowers_the_rate_of_the_base_optimizer() -> None:
    work = job("mlp", sgd)
    schedule = schedules.ReduceLROnPlateau(work.optimizer, factor=0.1, patience=0)
    for value in (1.0, 2.0, 3.0):
        schedule.step(value)
    assert work.optimizer.base.param_groups[0]["lr"] == pytest.approx(5e-4)


def test_groups_keep_rates_of_their_own() -> None:
    def base(parameters: Any) -> torch.optim.Optimizer:
        first, *others = parameters
        return torch.optim.SGD([{"params": [first], "lr": 1e-3}, {"params": others}], lr=0.05, momentum=0.9)

    work = job("digits", base).train(range(12))
    assert [group["lr"] for group in work.optimizer.param_groups] == [1e-3, 0.05]
    assert nonzero_slices(work.space, work.optimizer.config()) == []


def test_a_rate_of_zero_still_ends_at_zero_units() -> None:
    work = job("mlp", sgd)
    schedule = schedules.LambdaLR(work.optimizer, lambda _: 0.0)
    work.train(range(12))
    assert schedule.get_last_lr() == [0.0]
    assert nonzero_slices(work.space, work.optimizer.config()) == []


def test_a_gradient_scaler_and_clipping_work_as_usual() -> None:
    work = job("mlp", sgd)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(12):
        work.optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(work.loss(step)))
        scaler.unscale_(work.optimizer)
        torch.nn.utils.clip_grad_norm_(work.model.parameters(), 1.0)
        scaler.step(work.optimizer)
        scaler.update()
    assert work.optimizer.progress["step"] == 12
    assert nonzero_slices(work.space, work.optimizer.config()) == []


def test_a_step_that_the_scaler_skips_does_not_count() -> None:
    work = job("mlp", sgd)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    before = snapshot(work.model)
    torch.autograd.backward(scaler.scale(work.loss(0) * torch.inf))
    scaler.step(work.optimizer)
    scaler.update()
    assert work.optimizer.progress["step"] == 0
    assert same(snapshot(work.model), before)


@pytest.mark.parametrize("base", [sgd, adamw], ids=lambda base: base.__name__)
def test_a_closure_is_evaluated_once_a_step_and_its_loss_returned(base: Base) -> None:
    work, plain = job("mlp_bn", base), job("mlp_bn", base).train(range(12))
    losses: list[float] = []

    def closure() -> float:
        work.optimizer.zero_grad()
        loss = work.loss(len(losses))
        torch.autograd.backward(loss)
        losses.append(float(loss.detach()))
        return losses[-1]

    for step in range(12):
        assert work.optimizer.step(closure) == losses[-1]
        assert len(losses) == step + 1
    assert same(snapshot(work.model), snapshot(plain.model))


def test_zero_grad_is_the_base_optimizers() -> None:
    work = job("mlp", sgd)
    torch.autograd.backward(work.loss(0))
    work.optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in work.model.parameters())
    work.optimizer.zero_grad()
    assert all(p.grad is None for p in work.model.parameters())


def test_the_same_gradients_give_the_same_bits() -> None:
    one, two = (finish(job("digits", adamw), 0) for _ in range(2))
    assert identical(one, two)


# ---- states that do not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        lambda: job("mlp", sgd),
        lambda: job("mlp_bn", sgd, "40%"),
        lambda: job("mlp_bn", sgd, {"params": "50%"}),
        lambda: job("mlp_bn", sgd, steps=24),
        lambda: job("mlp_bn", sgd, start=0.5),
        lambda: job("mlp_bn", sgd, stop=0.5),
    ],
    ids=["model", "budget", "metric", "steps", "start", "stop"],
)
def test_a_state_of_another_space_or_schedule_is_refused(other: Callable[[], Job]) -> None:
    work = job("mlp_bn", sgd).train(range(5))
    before = snapshot(work.model), work.optimizer.progress
    with pytest.raises(UsageError, match="another model, space or schedule"):
        work.optimizer.load_state_dict(other().optimizer.state_dict())
    assert same(snapshot(work.model), before[0])
    assert work.optimizer.progress == before[1]


def test_the_state_of_a_plain_optimizer_is_refused() -> None:
    work = job("mlp", sgd)
    with pytest.raises(UsageError, match=r"DHSPG\.load_state_dict"):
        work.optimizer.load_state_dict(work.optimizer.base.state_dict())


def test_it_is_an_optimizer() -> None:
    work = job("mlp", sgd)
    assert isinstance(work.optimizer, torch.optim.Optimizer)
    assert isinstance(work.optimizer, DHSPG)
    assert work.optimizer.param_groups is work.optimizer.base.param_groups
    assert "lr: 0.05" in repr(work.optimizer)
