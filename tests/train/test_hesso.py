"""HESSO: units leave in periods and stay out, the budget is met, five criteria rank them, candidates are probed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coppice import HESSO, UsageError, build_space, extract, trace
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


# ---- saliency --------------------------------------------------------------------------------------------------------


def test_saliency_is_the_mean_of_five_criteria_each_over_its_norm() -> None:
    """Computed again, unit by unit, from rows of weights and biases and their gradients at three steps."""
    work = hesso("mlp", lambda p: torch.optim.SGD(p, lr=0.0))
    names = ["layers.0", "layers.3", "layers.6"]
    assert [f.name for f in work.space.families] == names

    def rows(of: Any) -> torch.Tensor:
        """[units, numbers], short units padded with zeros."""
        own = [torch.cat([of(f"{n}.weight"), of(f"{n}.bias")[:, None]], 1).double() for n in names]
        return torch.cat([torch.nn.functional.pad(part, (0, 130 - part.shape[1])) for part in own])

    cosine, first, second = torch.zeros(288), torch.zeros(288), torch.zeros(288)
    x = rows(lambda name: work.model.get_parameter(name).detach())
    for step in range(3):
        work.step(step)
        g = rows(lambda name: work.model.get_parameter(name).grad)
        dot = (x * g).sum(1)
        cosine = cosine + dot / (x.norm(dim=1) * g.norm(dim=1)).clamp_min(1e-30) / 3
        first = first + dot.abs() / 3
        second = second + dot.square() / 2 / 3
    sizes = torch.tensor([33.0] * 128 + [129.0] * 96 + [97.0] * 64)
    criteria = [x.norm(dim=1), x.norm(dim=1) / sizes.sqrt(), 1 - cosine, first, second]
    wanted = sum(c / c.norm() for c in criteria) / 5
    found = torch.cat([torch.from_numpy(work.optimizer.saliency()[name]) for name in names])
    torch.testing.assert_close(found, wanted.double(), rtol=1e-4, atol=1e-7)


# ---- the corrective cycle --------------------------------------------------------------------------------------------


def test_probes_scale_candidates_for_a_step_and_are_undone_to_the_bit() -> None:
    work = hesso("digits", lambda p: torch.optim.SGD(p, lr=0.0), steps=120, cric=True)
    optimizer = work.optimizer
    assert isinstance(optimizer, HESSO)
    assert optimizer._cycles == (30, 36, 43)
    assert optimizer._points()[0] == 50
    before = {name: p.detach().clone() for name, p in work.model.named_parameters()}
    depths = set()
    for step in range(49):
        work.step(step)
        moved = {n for n, p in work.model.named_parameters() if not torch.equal(p, before[n])}
        assert bool(moved) == bool(optimizer._depth)
        for name in moved:
            ratio = before[name] / work.model.get_parameter(name).detach()
            assert {*ratio[before[name] != 0].tolist()} <= {1.0, 2.0**optimizer._depth}
        depths.add(optimizer._depth)
    assert depths == {0, 1, 2, 3}
    work.step(49)
    assert all(torch.equal(p, before[name]) for name, p in work.model.named_parameters())


class Hidden(torch.nn.Module):
    """Eight hidden units without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(4, 8, bias=False)
        self.out = torch.nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(torch.relu(self.a(x)))
        return y


@pytest.mark.parametrize("cric", [False, True], ids=["plain", "cric"])
def test_units_that_only_look_redundant_are_kept_by_the_cycle(cric: bool) -> None:
    """At a minimum every gradient is zero and first-order criteria are blind; probes see what its absence costs.

    Units 0-3 carry the output, 4-7 are larger but lead nowhere.
    """
    model = Hidden()
    with torch.no_grad():
        model.a.weight.copy_(torch.cat([torch.eye(4), 1.2 * torch.eye(4)]))
        model.out.weight.copy_(torch.diag(torch.tensor([1.0] * 4 + [0.0] * 4)))
    x = torch.rand(16, 4) + 0.5
    wanted = model(x).detach()
    space = build_space(trace(model, x))
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = HESSO(space, base, {"macs": "50%"}, steps=60, start=0.25, stop=0.75, periods=1, cric=cric)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward((model(x) - wanted).square().mean())
        optimizer.step()
    kept = optimizer.config()["a"]
    assert kept == ((0, 1, 2, 3) if cric else (4, 5, 6, 7))
