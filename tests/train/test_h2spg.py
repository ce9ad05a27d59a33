"""H2SPG: segments are erased in training, the network stays valid, and the trained model is the subnet."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coppice import DHSPG, H2SPG, BudgetError, UsageError, build_space, extract, trace
from coppice.passes.train.h2spg import silent
from train.loops import Job, adamw, floating, same, sgd, snapshot
from zoo import MODELS

BEDS = ("resnet20", "stacked_unets", "super_resnet", "darts", "regnet", "vit")
STEPS = 12


def job(name: str, budget: str = "30%", base: Any = adamw, **options: Any) -> Job:
    case = MODELS[name]
    model = case.build()
    args, kwargs = case.args(4)
    return job_of(model, args, kwargs, budget, base, **options)


def job_of(model: nn.Module, args: Any, kwargs: Any, budget: str, base: Any = sgd, **options: Any) -> Job:
    space = build_space(trace(model, kwargs or args))
    schedule = {"steps": STEPS, "start": 0.25, "stop": 0.75}
    optimizer = H2SPG(space, base(model.parameters()), {"macs": budget}, **{**schedule, **options})
    return Job(model.train(), space, optimizer, args, kwargs or {})


@pytest.mark.parametrize("name", BEDS)
@pytest.mark.parametrize("budget", ["50%", "30%", "15%"])
def test_the_trained_model_is_the_subnet(name: str, budget: str) -> None:
    work = job(name, budget).train(range(STEPS))
    config = work.optimizer.config()
    subnet = extract(work.space, config)
    assert subnet.receipt["equivalence"]["error"] <= 1e-9
    limit = float(budget[:-1]) / 100 * work.space.cost(work.space.full())["macs"][0]
    assert 0.8 * limit < work.space.cost(config)["macs"][0] <= limit
    args, kwargs = work.args, work.kwargs
    model, small = copy.deepcopy(work.model).eval().double(), copy.deepcopy(subnet.module).double()
    with torch.no_grad():
        wide = [x.double() if x.is_floating_point() else x for x in args]
        for a, b in zip(floating(model(*wide, **kwargs)), floating(small(*wide, **kwargs)), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-9 * float(a.abs().max()))


@pytest.mark.parametrize("name", BEDS)
def test_something_is_erased_at_a_small_budget(name: str) -> None:
    work = job(name, "12%", erase=1.0).train(range(4))
    config = work.optimizer.config() if work.optimizer.count >= 9 else _quiet(work)
    assert config.skip
    erased = work.space.segments.erased(config.skip)
    assert work.space.segments.valid(erased[None])[0]


def _quiet(work: Job) -> Any:
    with pytest.warns(UserWarning, match="redundant units chosen so far are zero"):
        return work.optimizer.config()


def test_erased_segments_are_zero_after_every_later_step_and_their_moments_gone() -> None:
    work = job("super_resnet", "20%").train(range(STEPS))
    dead = work.space.dead_tensors(work.optimizer.config().skip)
    parameters = {n: p for n, p in work.space.graph.parameters().items() if n in dead}
    assert parameters
    for step in range(STEPS, STEPS + 3):
        work.step(step)
        for p in parameters.values():
            assert not p.any()
            assert not any(m.any() for m in work.optimizer.base.state[p].values() if m.shape == p.shape)


def test_nothing_erased_is_dhspg() -> None:
    work, twin = job("digits", erase=0.0), job("digits")
    twin.optimizer = DHSPG(
        twin.space, adamw(twin.model.parameters()), {"macs": "30%"}, steps=STEPS, start=0.25, stop=0.75
    )
    assert work.train(range(STEPS)).optimizer.config() == twin.train(range(STEPS)).optimizer.config()
    assert same(snapshot(work.model), snapshot(twin.model))


def test_erasing_brings_its_part_of_the_saving_and_no_more() -> None:
    for part in (0.3, 0.6, 0.9):
        work = job("resnet20", "30%", erase=part).train(range(4))
        config = _quiet(work)
        full = work.space.cost(work.space.full())["macs"][0]
        after = work.space.cost(work.space.erase(*config.skip))["macs"][0]
        assert full - after <= part * 0.7 * full


def test_what_units_cannot_meet_erasing_does() -> None:
    work = job("resnet20", "30%")
    least = work.space.cost(np.array([[f.widths[0] for f in work.space.families]]))["macs"][0]
    share = f"{90 * least / work.space.cost(work.space.full())['macs'][0]}%"
    with pytest.raises(BudgetError):
        DHSPG(work.space, adamw(work.model.parameters()), {"macs": share})
    work = job("resnet20", share).train(range(STEPS))
    subnet = extract(work.space, work.optimizer.config())
    assert subnet.receipt["costs"]["macs"]["after"] <= 0.9 * least
    with pytest.raises(BudgetError):
        job("resnet20", share, erase=0.0)


def test_a_preview_before_the_first_step_meets_the_budget() -> None:
    work = job("resnet20")
    config = _quiet(work)
    assert work.space.cost(config)["macs"][0] <= 0.3 * work.space.cost(work.space.full())["macs"][0]


def test_kept_segments_stay() -> None:
    free = _quiet(job("super_resnet", "20%", erase=1.0).train(range(4))).skip
    work = job("super_resnet", "20%", erase=1.0, keep=free[:2]).train(range(4))
    assert set(_quiet(work).skip).isdisjoint(free[:2])


def test_a_run_stopped_anywhere_goes_on_to_the_same_end() -> None:
    whole = job("super_resnet").train(range(STEPS))
    for at in (1, 3, 6, 9, 11):
        first = job("super_resnet").train(range(at))
        again = job("super_resnet")
        again.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
        again.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        again.train(range(at, STEPS))
        assert same(snapshot(again.model), snapshot(whole.model))
        assert again.optimizer.config() == whole.optimizer.config()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"erase": 1.5}, "erase is 1.5"),
        ({"erase": -0.1}, "erase is -0.1"),
        ({"keep": ["block9"]}, "no segment is called 'block9'"),
    ],
)
def test_wrong_options(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError) as caught:
        job("digits", **options)
    assert part in str(caught.value)


# ---- silent --------------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Sums of branches; ``end`` comes after the parameters of the second one."""

    def __init__(self, end: nn.Module, bare: bool = False) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Sequential(nn.Linear(4, 6), end)
        self.out = nn.Linear(6, 2)
        self.bare = bare

    def forward(self, x: Tensor) -> Tensor:
        extra = torch.tanh(x.repeat(1, 2)[:, :6]) if self.bare else 0.0
        y: Tensor = self.out(torch.relu(self.a(x) + self.b(x) + extra))
        return y


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (nn.Identity(), True),
        (nn.ReLU(), True),
        (nn.BatchNorm1d(6), True),
        (nn.LayerNorm(6), True),
        (nn.LayerNorm(6, elementwise_affine=False), True),
        (nn.Sigmoid(), False),
        (nn.Softmax(-1), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_a_branch_is_silent_if_its_zero_parameters_make_it_so(end: nn.Module, expected: bool) -> None:
    space = build_space(trace(Branches(end).eval(), torch.randn(2, 4)))
    found = dict(zip([segment.name for segment in space.segments], silent(space).tolist(), strict=True))
    assert found["b" if "b" in found else "b.0"] is expected
    assert found["a"] is True


def test_meta_tensors_cannot_be_trained() -> None:
    with torch.device("meta"):
        model, x = Branches(nn.ReLU()).eval(), torch.randn(2, 4)
    with pytest.raises(UsageError, match="meta"):
        silent(build_space(trace(model, x)))
