"""DHSPG: the budget is met exactly, redundant units are zero from ``stop`` on, and the subnet is the trained model."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from coppice import DHSPG, Config, build_space, extract, prune, trace
from coppice.passes.train.engine import PruningOptimizer
from prune.nets import costs, full, growable
from train.loops import Base, adam, adamw, floating, job, nonzero_slices, redundant_slices, same, sgd, snapshot
from zoo import MODELS

JOBS: list[tuple[str, Base]] = [
    ("digits", sgd),
    ("digits", adam),
    ("digits", adamw),
    ("digits", partial(torch.optim.RMSprop, lr=1e-3, momentum=0.5, centered=True)),
    ("digits", partial(torch.optim.Adagrad, lr=1e-2)),
    ("densenet", adamw),
    ("resnext", adamw),
    ("shufflenet_v2", adam),
    ("mlp_bn", adam),
    ("mlp", sgd),
    ("vit_sdpa", adamw),
    ("bert_classifier", adamw),
    ("llama_tied", adam),
]


def name_of(value: object) -> str:
    made = getattr(value, "func", value)
    return str(getattr(made, "__name__", made))


@pytest.mark.parametrize(("name", "base"), JOBS, ids=name_of)
def test_the_promises_hold_through_a_whole_training(name: str, base: Base) -> None:
    work = job(name, base)
    optimizer, space = work.optimizer, work.space
    work.train(range(optimizer.stop))
    config, at_stop = optimizer.config(), snapshot(work.model)
    most = {"macs": 0.5 * full(space)["macs"]}
    for step in range(optimizer.stop, optimizer.steps):
        assert nonzero_slices(space, config) == []
        assert nonzero_moments(optimizer, config) == []
        work.step(step)
    assert nonzero_slices(space, config) == []
    assert optimizer.config() == config
    redundant = sum(f.size - len(config[f.name]) for f in space.families)
    assert optimizer.progress == {"step": 12, "redundant": redundant, "zero": redundant, "skipped": 0, "remaining": 0}

    assert costs(space, config)["macs"] <= most["macs"]
    assert growable(space, config, most) == []

    parameters = dict(work.model.named_parameters())
    assert [n for n, p in parameters.items() if p.grad is not None and torch.equal(p, at_stop[n])] == []

    subnet = extract(space, config)
    args, kwargs = work.inputs(99)
    work.model.eval()
    with torch.no_grad():
        pairs = zip(floating(subnet(*args, **kwargs)), floating(work.model(*args, **kwargs)), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def nonzero_moments(optimizer: PruningOptimizer, config: Config) -> list[str]:
    """Optimizer state that a redundant unit still has."""
    tensors = optimizer.space.graph.tensors
    return [
        f"{key} of {name}"
        for name, axis, where in redundant_slices(optimizer.space, config)
        for key, moment in optimizer.base.state.get(tensors[name], {}).items()
        if isinstance(moment, Tensor)
        and moment.shape == tensors[name].shape
        and bool(moment.index_select(axis, where).ne(0).any())
    ]


def test_tied_slices_behind_residuals_and_concats_are_zeroed_with_their_unit() -> None:
    """The stem's channels of a DenseNet pass through every batch norm of the first block and its transition."""
    work = job("densenet", adamw, "40%").train(range(12))
    config = work.optimizer.config()
    gone = sorted({*range(24)} - {*config["stem"]})
    assert gone
    for norm in ("stages.0.layers.0.norm1", "stages.0.layers.2.norm1", "stages.1.0"):
        module = work.model.get_submodule(norm)
        assert isinstance(module, torch.nn.BatchNorm2d)
        for tensor in (module.weight, module.bias, module.running_mean):
            assert tensor is not None
            assert tensor.detach()[gone].abs().sum() == 0
    residual = job("digits", adamw, "30%").train(range(12))
    gone = sorted({*range(16)} - {*residual.optimizer.config()["stem"]})
    assert gone
    for name in ("stem.weight", "bn.weight", "bn.bias", "block1.conv2.weight", "block1.bn2.bias"):
        assert residual.model.get_parameter(name).detach()[gone].abs().sum() == 0


# ---- the three stages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [sgd, adam, adamw], ids=name_of)
def test_warm_up_is_the_base_optimizer_alone(base: Base) -> None:
    work, plain = job("mlp_bn", base), job("mlp_bn", base)
    for step in range(work.optimizer.start):
        work.step(step)
        plain.optimizer.base.zero_grad()
        torch.autograd.backward(plain.loss(step))
        plain.optimizer.base.step()
    assert same(snapshot(work.model), snapshot(plain.model))
    assert work.optimizer.progress == {"step": 3, "redundant": 0, "zero": 0, "skipped": 0, "remaining": 6}


def test_redundant_units_shrink_under_a_line_that_reaches_zero_at_stop() -> None:
    work = job("digits", sgd, steps=40, penalty=(0.0, 0.0, 0.0), epsilon=-1e9)  # the line alone
    optimizer, space = work.optimizer, work.space
    work.train(range(optimizer.start))
    with pytest.warns(UserWarning, match="0 of 0 redundant units"):
        config = optimizer.config()

    def norms() -> Tensor:
        tensors = space.graph.tensors
        total = torch.zeros(space.family("block1.conv1").size, dtype=torch.float64)
        for part in space.family("block1.conv1").slices:
            if part.masked and part.tensor in space.graph.parameters():  # all of them on axis 0
                total += tensors[part.tensor].detach().double().square().reshape(16, -1).sum(1)
        return total.sqrt()

    gone = sorted({*range(16)} - {*config["block1.conv1"]})
    first = norms()[gone]
    assert bool((first > 0).all())
    for step in range(optimizer.start, optimizer.stop):
        work.step(step)
        left = (optimizer.stop - 1 - step) / (optimizer.stop - optimizer.start)
        assert bool((norms()[gone] <= first * left * (1 + 1e-5)).all())
    assert bool((norms()[gone] == 0).all())


def test_the_penalty_and_the_projection_zero_units_before_the_line_does() -> None:
    work = job("digits", partial(torch.optim.SGD, lr=0.05), steps=60, penalty=(5.0, 2.0, 10.0))
    work.train(range(work.optimizer.stop - 4))
    progress = work.optimizer.progress
    assert 0 < progress["zero"] <= progress["redundant"]
    assert work.optimizer.stop > progress["step"]


def test_units_that_stay_take_the_plain_step() -> None:
    """The norm line and the penalty touch redundant slices only."""
    work = job("mlp", sgd)
    work.train(range(3))
    with pytest.warns(UserWarning, match="train 6 steps more"):
        config = work.optimizer.config()
    before = snapshot(work.model)
    work.optimizer.zero_grad()
    torch.autograd.backward(work.loss(3))
    gradient = {n: p.grad.clone() for n, p in work.model.named_parameters() if p.grad is not None}
    velocity = {n: work.optimizer.base.state[p]["momentum_buffer"].clone() for n, p in work.model.named_parameters()}
    work.optimizer.step()
    masks = {name: (axis, where) for name, axis, where in redundant_slices(work.space, config)}
    for name, p in work.model.named_parameters():
        expected = before[name] - 0.05 * (0.9 * velocity[name] + gradient[name] + 1e-3 * before[name])
        found = p.detach().clone()
        if name in masks:
            axis, where = masks[name]
            assert not torch.allclose(found.index_select(axis, where), expected.index_select(axis, where))
            found.index_copy_(axis, where, expected.index_select(axis, where))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


# ---- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"macs": "12%"}, {"params": "33%"}, {"bytes": 0.6, "macs": "45%"}, {"macs": "95%"}])
def test_any_budget_is_met_to_the_unit(budget: dict[str, str | float]) -> None:
    work = job("digits", adamw, budget).train(range(12))
    config, before = work.optimizer.config(), full(work.space)
    most = {m: (v if isinstance(v, float) else float(v.rstrip("%")) / 100) * before[m] for m, v in budget.items()}
    assert all(costs(work.space, config)[metric] <= limit for metric, limit in most.items())
    assert growable(work.space, config, most) == []
    assert extract(work.space, config).receipt["costs"]["macs"]["after"] == costs(work.space, config)["macs"]


def test_a_budget_of_everything_is_the_base_optimizer() -> None:
    work, plain = job("mlp", adamw, "100%").train(range(12)), job("mlp", adamw)
    for step in range(12):
        plain.optimizer.base.zero_grad()
        torch.autograd.backward(plain.loss(step))
        plain.optimizer.base.step()
    assert work.optimizer.config() == work.space.full()
    assert same(snapshot(work.model), snapshot(plain.model))


def test_bounds_rounding_and_ignored_layers_of_the_space_are_kept() -> None:
    case = MODELS["digits"]
    model = case.build().train()
    args, _ = case.args(4)
    space = build_space(trace(model, args), round_to=4, ignore="block3.*", bounds={"stem": 12})
    optimizer = DHSPG(space, adamw(model.parameters()), {"macs": "60%"}, steps=4, start=0.25, stop=0.75)
    for _ in range(4):
        optimizer.zero_grad()
        torch.autograd.backward(model(*args).square().mean())
        optimizer.step()
    kept = optimizer.config().widths()
    assert all(width % 4 == 0 for width in kept.values())
    assert kept["stem"] >= 12
    assert not any(name.startswith("block3") for name in kept)


def test_the_choice_is_the_allocators_for_the_saliency_at_start() -> None:
    work = job("digits", sgd).train(range(3))
    scores = work.optimizer.saliency()
    work.train(range(3, 12))
    assert work.optimizer.config() == prune(work.space, {"macs": "50%"}, scores)


def test_saliency_is_magnitude_less_what_descent_already_shrinks() -> None:
    work = job("mlp", sgd)
    size = work.space.magnitudes()
    assert all(scores == pytest.approx(size[name]) for name, scores in work.optimizer.saliency().items())
    first = work.model.get_parameter("layers.0.weight")
    bias = work.model.get_parameter("layers.0.bias")
    work.optimizer.zero_grad()
    for p in work.model.parameters():
        p.grad = torch.zeros_like(p)
    for p in (first, bias):
        assert p.grad is not None
        p.grad[:5] = 1e-3 * p.detach()[:5]  # descent shrinks these five and grows the next
        p.grad[5:10] = -1e-3 * p.detach()[5:10]
    work.optimizer.step()
    ratio = work.optimizer.saliency()["layers.0"] / work.space.magnitudes()["layers.0"]
    assert (ratio[:5] < 0.5).all()
    assert (ratio[5:10] > 1.5).all()
    assert ratio[10:] == pytest.approx(1.0)
