"""DHSPG at its edges: what it refuses, parameters that do not train, odd families, gradients that are not numbers."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coppice import DHSPG, BudgetError, UsageError, build_space, extract, trace
from train.loops import Job, adamw, job, job_of, nonzero_slices, same, sgd, snapshot
from zoo import MODELS


@pytest.mark.parametrize(
    "schedule",
    [
        {"steps": 2},
        {"steps": 0},
        {"steps": -5},
        {"steps": 10.0},
        {"steps": 4, "start": 0.5, "stop": 0.6},
        {"start": 0.6, "stop": 0.6},
        {"start": 0.7, "stop": 0.6},
        {"start": -0.1},
        {"stop": 1.1},
    ],
    ids=str,
)
def test_a_schedule_without_a_penalty_is_refused(schedule: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="leave no step for the penalty") as caught:
        job("mlp", sgd, **{"steps": 12, **schedule})
    assert "number of optimizer steps" in caught.value.remedy


@pytest.mark.parametrize("base", [None, "sgd", torch.optim.SGD])
def test_base_must_be_an_optimizer(base: Any) -> None:
    space = build_space(trace(MODELS["mlp"].build(), MODELS["mlp"].args()[0]))
    with pytest.raises(UsageError, match="pass an optimizer instance"):
        DHSPG(space, base, {"macs": "50%"})


def test_base_must_train_the_traced_model() -> None:
    model = MODELS["mlp"].build()
    space = build_space(trace(model, MODELS["mlp"].args()[0]))
    stranger = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    with pytest.raises(UsageError, match="trains none of the graph's 8 parameters"):
        DHSPG(space, stranger, {"macs": "50%"})


def test_parameters_cannot_join_later() -> None:
    work = job("mlp", sgd)
    with pytest.raises(UsageError, match="cannot join"):
        work.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


def test_a_budget_out_of_reach_is_refused_before_training() -> None:
    with pytest.raises(BudgetError) as caught:
        job("digits", sgd, "0.1%")
    assert caught.value.closest["macs"] > 0


# ---- parameters that do not train ----------------------------------------------------------------------------------


def finished(work: Job) -> None:
    """The run ends with exact zeros, and the live model is the subnet."""
    work.train(range(12))
    config = work.optimizer.config()
    assert nonzero_slices(work.space, config) == []
    work.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(extract(work.space, config)(*work.args), work.model(*work.args))


def test_frozen_parameters_stay_as_they_are_outside_redundant_units() -> None:
    case = MODELS["digits"]
    model = case.build()
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(("stem", "bn", "block1")))
    before = snapshot(model)
    work = job_of(model, case.args(4)[0])
    finished(work)
    kept = list(work.optimizer.config()["stem"])
    assert torch.equal(model.get_parameter("stem.weight")[kept], before["stem.weight"][kept])
    assert not torch.equal(model.get_parameter("head.weight"), before["head.weight"])


def test_an_optimizer_over_some_parameters_will_do() -> None:
    case = MODELS["digits"]
    model = case.build()
    head = model.get_submodule("head")
    work = job_of(model, case.args(4)[0], base=lambda _: sgd(head.parameters()))
    finished(work)


class Skips(nn.Module):
    """A branch that training leaves out: its parameters never have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 16)
        self.b = nn.Linear(8, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        if not self.training:
            hidden = hidden + torch.relu(self.b(x))
        result: Tensor = self.out(hidden)
        return result


def test_parameters_without_a_gradient_are_zeroed_with_their_units() -> None:
    work = job_of(Skips().eval(), (torch.randn(4, 8),), base=adamw)
    finished(work)
    assert work.model.get_parameter("b.weight").grad is None


def test_a_step_without_any_gradient_changes_only_redundant_units() -> None:
    work = job("mlp", adamw)
    before = snapshot(work.model)
    for _ in range(12):
        work.optimizer.zero_grad()
        work.optimizer.step()
    config = work.optimizer.config()
    assert nonzero_slices(work.space, config) == []
    reference = extract(work.space, config).reference().state_dict()
    after = snapshot(work.model)
    assert same(after, {name: tensor.clone() for name, tensor in reference.items()})
    assert not same(after, before)


# ---- odd families --------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A layer of one unit, one of two, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 1)
        self.two = nn.Linear(6, 2)
        self.shared = nn.Linear(3, 12)
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.one(x)), torch.relu(self.two(x))], 1)
        hidden = torch.relu(self.shared(x)) + torch.relu(self.shared(2 * x))
        result: Tensor = self.out(hidden)
        return result


def test_a_layer_of_one_unit_keeps_it_and_a_layer_used_twice_is_cut_once() -> None:
    work = job_of(Odd().eval(), (torch.randn(4, 6),), budget="40%")
    assert {f.name: f.size for f in work.space.families} == {"two": 2, "shared": 12}
    finished(work)
    assert bool(work.model.get_parameter("one.weight").ne(0).all())
    assert 1 <= len(work.optimizer.config()["two"]) <= 2


def test_a_family_that_bounds_hold_at_one_width_keeps_it() -> None:
    case = MODELS["mlp"]
    model, (args, _) = case.build(), case.args(4)
    space = build_space(trace(model, args), bounds={"layers.3": 1.0, "layers.6": (40, 40)})
    optimizer = DHSPG(space, sgd(model.parameters()), {"macs": "45%"}, steps=12, start=0.25, stop=0.75)
    work = Job(model.train(), space, optimizer, args, {})
    finished(work)
    assert optimizer.config().widths()["layers.3"] == 96
    assert optimizer.config().widths()["layers.6"] == 40


def test_units_that_are_zero_from_the_start_are_chosen_and_stay_zero() -> None:
    case = MODELS["mlp"]
    model = case.build()
    with torch.no_grad():
        model.get_parameter("layers.0.weight")[:100].zero_()
        model.get_parameter("layers.0.bias")[:100].zero_()
    work = job_of(model, case.args(4)[0], base=lambda p: torch.optim.SGD(p, lr=0.0), budget="50%")
    finished(work)
    assert {*range(100, 128)} & {*work.optimizer.config()["layers.0"]}


def test_only_buffers_and_nothing_prunable_leaves_the_base_optimizer() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Softmax(1), nn.Linear(8, 2)).eval()
    work = job_of(model, (torch.randn(4, 4),), budget="100%")
    assert work.space.families == ()
    finished(work)
    assert work.optimizer.progress == {"step": 12, "redundant": 0, "zero": 0, "skipped": 0, "remaining": 0}


# ---- gradients that are not numbers --------------------------------------------------------------------------------


def poison(work: Job, step: int, value: float) -> None:
    work.optimizer.zero_grad()
    torch.autograd.backward(work.loss(step))
    for p in work.model.parameters():
        assert p.grad is not None
        p.grad.fill_(value)
    work.optimizer.step()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 4, 8, 10], ids=["warm-up", "penalty", "last penalty step", "refinement"])
def test_a_step_with_gradients_that_are_no_numbers_is_skipped_and_said_once(at: int, value: float) -> None:
    work, plain = job("digits", sgd).train(range(at)), job("digits", sgd).train(range(at))
    before = snapshot(work.model), work.optimizer.progress
    with pytest.warns(UserWarning, match=f"NaN or infinite at step {at}; the step is skipped"):
        poison(work, at, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        poison(work, at, value)
    assert work.optimizer.progress == {**before[1], "skipped": 2}
    assert same_parameters(work, before[0])
    work.model.load_state_dict(before[0])  # the running statistics, which the two forwards have moved
    assert same(snapshot(work.train(range(at, 12)).model), snapshot(plain.train(range(at, 12)).model))
    assert work.optimizer.config() == plain.optimizer.config()


def same_parameters(work: Job, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in work.model.named_parameters())


def test_one_bad_number_among_many_is_found_and_huge_ones_are_fine() -> None:
    work = job("mlp", sgd)
    torch.autograd.backward(work.loss(0))
    grad = work.model.get_parameter("layers.3.weight").grad
    assert grad is not None
    grad[5, 7] = torch.nan
    with pytest.warns(UserWarning, match="skipped"):
        work.optimizer.step()
    assert work.optimizer.progress["skipped"] == 1
    grad[5, 7] = 3e38  # its square is infinite, it is not
    grad[5, 8] = -3e38
    work.optimizer.param_groups[0]["lr"] = 0.0
    work.optimizer.step()
    assert work.optimizer.progress["skipped"] == 1
    assert work.optimizer.progress["step"] == 1


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(20, 300), nn.Linear(300, 200), nn.Linear(200, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(torch.relu(self.second(torch.relu(self.first(x)))))
        return result


@pytest.mark.parametrize("where", ["loss", "input", "output"])
def test_between_strides_large_gradients_show_what_a_backward_pass_leaves(where: str) -> None:
    """60,000 numbers are read along one row; a single one set by hand is found at the next stride."""
    work = job_of(Wide().eval(), (torch.randn(4, 20),), steps=400)
    second = work.model.get_submodule("second")
    work.train(range(1))
    assert not work.optimizer._due()
    before = snapshot(work.model)
    seventh, hook = torch.tensor(7), None
    if where == "input":
        hook = second.register_forward_pre_hook(lambda _, x: (x[0].index_fill(1, seventh, torch.nan),))
    elif where == "output":

        def spoil(_: nn.Module, into: Any, out: Any) -> Any:
            return (into[0].index_fill(1, seventh, torch.inf),)

        hook = second.register_full_backward_hook(spoil)
    work.optimizer.zero_grad()
    torch.autograd.backward(work.loss(1) * (torch.nan if where == "loss" else 1.0))
    if hook is not None:
        hook.remove()
    with pytest.warns(UserWarning, match="skipped"):
        work.optimizer.step()
    assert same(snapshot(work.model), before)
    work.train(range(1, 5))
    grad = second.get_parameter("weight").grad
    while not work.optimizer._due():
        work.step(work.optimizer.count)
    assert grad is not None
    second.get_parameter("weight").grad = grad.clone().index_put_(
        (torch.tensor(150), torch.tensor(80)), torch.tensor(torch.nan)
    )
    work.optimizer.step()
    assert work.optimizer.progress["skipped"] == 2


def test_a_closure_with_bad_gradients_is_skipped_with_its_loss_returned() -> None:
    work = job("mlp", adamw)
    before = snapshot(work.model)

    def closure() -> float:
        work.optimizer.zero_grad()
        torch.autograd.backward(work.loss(0) * torch.nan)
        return 3.0

    with pytest.warns(UserWarning, match="skipped"):
        assert work.optimizer.step(closure) == 3.0
    assert same(snapshot(work.model), before)


# ---- parameters that come later, and configs asked for too early -----------------------------------------------------


def test_parameters_added_to_the_base_behind_our_back_are_refused() -> None:
    work = job("mlp", sgd).train(range(2))
    work.optimizer.base.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    with pytest.raises(UsageError, match="cannot join"):
        work.step(2)


def test_a_schedule_longer_than_the_training_says_what_remains_and_the_subnet_is_the_masked_model() -> None:
    work = job("digits", sgd, steps=100).train(range(40))
    assert work.optimizer.progress["remaining"] == 35
    with pytest.warns(UserWarning, match=r"at step 40 of 75: .* train 35 steps more"):
        config = work.optimizer.config()
    assert nonzero_slices(work.space, config)
    subnet = extract(work.space, config)
    work.model.eval()
    with torch.no_grad():
        found, masked, live = (m(*work.args) for m in (subnet, subnet.reference(), work.model))
    torch.testing.assert_close(found, masked)
    assert not torch.allclose(found, live)


def test_asking_for_the_config_in_warm_up_changes_nothing() -> None:
    work, plain = job("digits", sgd), job("digits", sgd).train(range(12))
    for step in range(12):
        if step < work.optimizer.stop:
            with pytest.warns(UserWarning, match=f"at step {step} of 9"):
                work.optimizer.config()
        work.step(step)
    assert work.optimizer.config() == plain.optimizer.config()
    assert same(snapshot(work.model), snapshot(plain.model))
