"""Trainers that own the loop: a fake one that calls hooks as Lightning does, and accelerate where it is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coppice import HESSO, UsageError
from coppice.passes.train.callback import PruningCallback
from train.loops import Job, adamw, job, nonzero_slices, same, sgd, snapshot


class FakeTrainer:
    """Wraps the optimizer, steps it with a closure, and calls every hook by name, missing or not."""

    def __init__(self, work: Job, callback: PruningCallback, steps: int) -> None:
        self.work, self.callback, self.steps = work, callback, steps
        self.optimizers = [type("Wrapped", (), {"optimizer": work.optimizer})()]
        self.estimated_stepping_batches = steps
        self.logged: list[dict[str, float]] = []

    def log_dict(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def call(self, hook: str, *args: Any) -> None:
        getattr(self.callback, hook)(self, self, *args)

    def fit(self) -> None:
        for hook in ("setup", "on_fit_start", "on_train_start"):
            self.call(hook)
        for step in range(self.steps):
            self.call("on_train_batch_start", None, step)

            def closure(step: int = step) -> float:
                loss = self.work.loss(step)
                self.work.optimizer.zero_grad()
                torch.autograd.backward(loss)
                return float(loss.detach())

            self.work.optimizer.step(closure)
            self.call("on_train_batch_end", None, None, step)
        for hook in ("on_train_end", "on_fit_end", "teardown"):
            self.call(hook)


def test_the_callback_logs_and_keeps_the_config() -> None:
    work, plain = job("digits", adamw, method=HESSO), job("digits", adamw, method=HESSO).train(range(12))
    callback = PruningCallback()
    trainer = FakeTrainer(work, callback, 12)
    trainer.fit()
    assert callback.config == plain.optimizer.config()
    assert same(snapshot(work.model), snapshot(plain.model))
    assert [values["pruning/step"] for values in trainer.logged] == list(range(1, 13))
    assert trainer.logged[-1]["pruning/zero"] == work.optimizer.progress["redundant"]
    assert callback.state_dict() == {}


def test_the_callback_masks_an_average() -> None:
    work = job("digits", sgd)
    average = torch.optim.swa_utils.AveragedModel(work.model, use_buffers=True)
    callback = PruningCallback(ema=average)
    trainer = FakeTrainer(work, callback, 12)
    for hook in ("on_fit_start",):
        trainer.call(hook)
    for step in range(12):
        work.step(step)
        average.update_parameters(work.model)
        trainer.call("on_train_batch_end", None, None, step)
    work.model.load_state_dict(average.module.state_dict())
    assert nonzero_slices(work.space, work.optimizer.config()) == []


def test_a_training_shorter_than_the_schedule_is_refused_when_it_starts() -> None:
    with pytest.raises(UsageError, match="takes 8 optimizer steps, and units are zero only after 9") as caught:
        FakeTrainer(job("mlp"), PruningCallback(), 8).fit()
    assert "steps=8" in caught.value.remedy


def test_a_trainer_without_a_sparse_optimizer_is_refused() -> None:
    trainer = FakeTrainer(job("mlp"), PruningCallback(), 12)
    trainer.optimizers = [trainer.work.optimizer.base]
    with pytest.raises(UsageError, match="none of the trainer's optimizers prunes"):
        trainer.fit()


def test_other_names_are_no_hooks() -> None:
    assert not hasattr(PruningCallback(), "optimizer")
    assert PruningCallback().state_key == "PruningCallback"


def test_accelerate_trains_as_the_plain_loop_does() -> None:
    accelerate = pytest.importorskip("accelerate")
    work, plain = job("mlp", adamw), job("mlp", adamw).train(range(12))
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(work.model, work.optimizer)
    for step in range(12):
        optimizer.zero_grad()
        torch.manual_seed(step)
        args, _ = work.inputs(step)
        accelerator.backward(model(*args).square().mean())
        optimizer.step()
    assert work.optimizer.progress["step"] == 12
    assert work.optimizer.config() == plain.optimizer.config()
    assert same(snapshot(work.model), snapshot(plain.model))
