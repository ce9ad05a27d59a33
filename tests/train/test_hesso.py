"""HESSO: units leave in periods and stay out, the budget is met, five criteria rank them, candidates are probed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coppice import HESSO, UsageError, extract
from prune.nets import costs, full
from train.loops import Base, Job, adam, adamw, floating, job, nonzero_slices, same, sgd, snapshot

JOBS: list[tuple[str, Base]] = [
    ("digits", sgd),
    ("densenet", adamw),
    ("mlp_bn", adam),
    ("vit_sdpa", adamw),
    ("llama_tied", adam),
]


def hesso(name: str, base: Base = sgd, budget: Any = "50%", **options: Any) -> Job:
    return job(name, base, budget, method=HESSO, **options)


@pytest.mark.parametrize("cric", [False, True], ids=["plain", "cric"])
@pytest.mark.parametrize(("name", "base"), JOBS, ids=lambda v: getattr(v, "__name__", v))
def test_the_promises_hold_through_a_whole_training(name: str, base: Base, cric: bool) -> None:
    work = hesso(name, base, cric=cric)
    optimizer, space = work.optimizer, work.space
    work.train(range(optimizer.stop))
    config = optimizer.config()
    for step in range(optimizer.stop, optimizer.steps):
        assert nonzero_slices(space, config) == []
        work.step(step)
    assert nonzero_slices(space, config) == []
    redundant = sum(f.size - len(config[f.name]) for f in space.families)
    assert optimizer.progress == {"step": 12, "redundant": redundant, "zero": redundant, "skipped": 0, "remaining": 0}
    assert 0.9 < costs(space, config)["macs"] / (0.5 * full(space)["macs"]) <= 1
    subnet = extract(space, config)
    args, kwargs = work.inputs(99)
    work.model.eval()
    with torch.no_grad():
        pairs = zip(floating(subnet(*args, **kwargs)), floating(work.model(*args, **kwargs)), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", ["50%", "15%", {"params": "30%", "macs": "60%"}], ids=str)
def test_units_leave_in_equal_parts_and_stay_out(budget: Any) -> None:
    work = hesso("digits", sgd, budget, steps=40, periods=5)
    space, optimizer = work.space, work.optimizer
    assert optimizer._points() == (10, 14, 18, 22, 26)
    before, kept = full(space), space.full()
    budget = budget if isinstance(budget, dict) else {"macs": budget}
    work.train(range(10))
    for period in range(5):
        first = optimizer.count
        work.step(first)
        config = optimizer._config
        assert config is not None
        assert all({*config[name]} <= {*kept[name]} for name in config)
        for metric, share in budget.items():
            part = 1 - (period + 1) / 5 * (1 - float(share.rstrip("%")) / 100)
            assert costs(space, config)[metric] <= part * before[metric] * (1 + 1e-9)
        work.train(range(first + 1, first + 4))
        assert nonzero_slices(space, config) == []
        kept = config
    assert optimizer.config() == kept


def test_units_of_a_period_shrink_linearly() -> None:
    work = hesso("mlp", lambda p: torch.optim.SGD(p, lr=0.0), steps=40, periods=2, budget="20%")
    work.train(range(10))
    weight = work.model.get_parameter("layers.0.weight")
    before = weight.detach().clone()
    for step in range(10, 20):
        work.step(step)
        config = work.optimizer._config
        assert config is not None
        gone = sorted({*range(128)} - {*config["layers.0"]})
        torch.testing.assert_close(weight.detach()[gone], before[gone] * (19 - step) / 10, rtol=1e-4, atol=1e-7)
        assert torch.equal(weight.detach()[list(config["layers.0"])], before[list(config["layers.0"])])
    assert gone


@pytest.mark.parametrize("periods", [1, 3, 6, 100])
def test_any_number_of_periods_fits_the_steps(periods: int) -> None:
    work = hesso("mlp", periods=periods).train(range(12))
    assert len(work.optimizer._points()) == min(periods, 6)
    assert nonzero_slices(work.space, work.optimizer.config()) == []


@pytest.mark.parametrize("periods", [0, -1, 2.5])
def test_a_number_of_periods_that_is_none_is_refused(periods: Any) -> None:
    with pytest.raises(UsageError, match="periods"):
        hesso("mlp", periods=periods)


@pytest.mark.parametrize("at", [2, 3, 4, 5, 7, 10])
@pytest.mark.parametrize("cric", [False, True], ids=["plain", "cric"])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path: Any, cric: bool, at: int) -> None:
    work = hesso("digits", adamw, cric=cric).train(range(at))
    torch.save({"model": work.model.state_dict(), "optimizer": work.optimizer.state_dict()}, tmp_path / "run.pt")
    work.train(range(at, 12))
    resumed = hesso("digits", adamw, cric=cric)
    stored = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.model.load_state_dict(stored["model"])
    resumed.optimizer.load_state_dict(stored["optimizer"])
    resumed.train(range(at, 12))
    assert same(snapshot(resumed.model), snapshot(work.model))
    assert resumed.optimizer.config() == work.optimizer.config()


def test_a_state_of_the_other_method_or_of_other_periods_is_refused() -> None:
    state = hesso("mlp", periods=2).optimizer.state_dict()
    for other in (job("mlp"), hesso("mlp", periods=3), hesso("mlp", periods=2, cric=True)):
        with pytest.raises(UsageError, match="belongs to another"):
            other.optimizer.load_state_dict(state)
