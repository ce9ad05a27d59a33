"""Training goes on in the subnet: the carried optimizer makes the steps that the masked model's would have made."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules

from coppice import (
    DHSPG,
    Config,
    Space,
    Subnet,
    UnsupportedError,
    UsageError,
    build_space,
    carry_over,
    extract,
    load,
    trace,
)
from coppice.passes.extract.check import difference
from train.loops import Base, adamw, job, redundant_slices
from zoo import MODELS

BEFORE, AFTER = 4, 5
BASES: dict[str, Base] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, lr_decay=1e-3),
}


class Masked:
    """A full model of the zoo in fp64, trained with the units that ``config`` removes held at zero."""

    def __init__(self, name: str, base: Base, share: float = 0.5) -> None:
        case = MODELS[name]
        self.model = case.build().double()
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        args, kwargs = case.args(4, torch.float64)
        self.args = args or (kwargs,)
        self.space = build_space(trace(self.model, kwargs or args))
        self.config = self.space.uniform(share)
        self.optimizer = base(self.model.parameters())
        self.hold()

    def hold(self) -> None:
        """Set removed units to zero, and what the optimizer remembers of them."""
        tensors = self.space.graph.tensors
        for name, axis, where in redundant_slices(self.space, self.config):
            tensors[name].data.index_fill_(axis, where, 0.0)
            for value in self.optimizer.state.get(tensors[name], {}).values():
                if isinstance(value, Tensor) and value.shape == tensors[name].shape:
                    value.index_fill_(axis, where, 0.0)
        for name in self.space.dead_tensors(self.config.skip):
            tensors[name].data.zero_()

    def batch(self, step: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(step)

        def draw(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=generator, dtype=x.dtype) if x.is_floating_point() else x.roll(step)

        args: tuple[Any, ...] = torch.utils._pytree.tree_map(draw, self.args)
        return args

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        batch = self.batch(step)
        result = model(**batch[0]) if isinstance(batch[0], dict) else model(*batch)
        loss = [x.square().mean() for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(loss).sum())
        optimizer.step()

    def train(self, steps: Iterable[int]) -> None:
        self.model.train()
        for step in steps:
            self.step(self.model, self.optimizer, step)
            self.hold()


def trained_apart(work: Masked, subnet: Subnet, optimizer: torch.optim.Optimizer) -> float:
    """How far the subnet is from the cut of the masked model, in any tensor, after more steps of both."""
    subnet.module.train()
    for step in range(BEFORE, BEFORE + AFTER):
        work.step(subnet.module, optimizer, step)
    work.train(range(BEFORE, BEFORE + AFTER))
    expected, found = subnet.slice(work.model.state_dict()), subnet.module.state_dict()
    return max(difference(expected[name].detach(), found[name].detach(), 1e-2) for name in expected if name in found)


@pytest.mark.parametrize("name", ["digits", "mlp", "mlp_bn", "densenet", "vit", "vit_sdpa", "vit_mha", "mobilenet_v2"])
@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_the_subnet_trains_on_as_the_masked_model_would_have(name: str, base: str) -> None:
    work = Masked(name, BASES[base])
    work.train(range(BEFORE))
    subnet = extract(work.space, work.config)
    assert subnet.receipt["module"]["kind"] == "user"
    assert trained_apart(work, subnet, carry_over(work.optimizer, subnet)) < 1e-9


@pytest.mark.parametrize("base", ["adamw", "rmsprop", "adagrad"])
def test_any_optimizer_whose_state_is_shaped_like_parameters(base: str) -> None:
    work = Masked("digits", BASES[base])
    work.train(range(BEFORE))
    subnet = extract(work.space, work.config)
    assert trained_apart(work, subnet, carry_over(work.optimizer, subnet)) < 1e-9


def test_without_the_state_it_would_be_another_training() -> None:
    """The test above can fail: a fresh optimizer goes elsewhere."""
    work = Masked("digits", BASES["adam"])
    work.train(range(BEFORE))
    subnet = extract(work.space, work.config)
    assert trained_apart(work, subnet, BASES["adam"](subnet.module.parameters())) > 1e-4


class Once(Masked):
    """Trained by DHSPG past its stop, from where redundant units stay at zero."""

    def __init__(self, name: str, base: Base) -> None:
        super().__init__(name, base)
        self.optimizer = DHSPG(self.space, self.optimizer, {"macs": "40%"}, steps=20, start=0.05, stop=0.2)

    def hold(self) -> None:
        """DHSPG does."""


@pytest.mark.parametrize(("name", "base"), [("digits", "momentum"), ("mlp_bn", "adam"), ("vit_mha", "adamw")])
def test_training_once_goes_on_in_the_small_model(name: str, base: str) -> None:
    work = Once(name, BASES[base])
    schedule = schedules.OneCycleLR(work.optimizer, max_lr=0.01, total_steps=20)
    work.train(range(BEFORE))
    assert isinstance(work.optimizer, DHSPG)
    assert work.optimizer.progress["zero"] == work.optimizer.progress["redundant"] > 0
    schedule.step()
    subnet = extract(work.space, work.optimizer.config())
    other = copy.copy(schedule)
    optimizer = carry_over(work.optimizer, subnet, schedulers=[other])
    schedule.step()
    other.step()
    assert optimizer.param_groups[0]["lr"] == work.optimizer.param_groups[0]["lr"]
    assert trained_apart(work, subnet, optimizer) < 1e-9


def test_an_erased_segment_takes_its_parameters_along() -> None:
    work = Masked("digits", BASES["momentum"])
    work.config = work.space.check(Config.of(dict(work.config.keep), skip=[work.space.segments[0].name]))
    work.hold()
    work.train(range(BEFORE))
    subnet = extract(work.space, work.config)
    optimizer = carry_over(work.optimizer, subnet)
    gone = {n for n, _ in work.model.named_parameters()} - {n for n, _ in subnet.module.named_parameters()}
    assert gone
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in subnet.module.parameters()}
    assert not gone & subnet.slice(dict(work.model.named_parameters())).keys()
    assert trained_apart(work, subnet, optimizer) < 1e-9


# ---- the training loop's objects -------------------------------------------------------------------------------------

SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: schedules.StepLR(o, 2, 0.5),
    "lambda": lambda o: schedules.LambdaLR(o, [lambda k: 0.9**k, lambda k: 0.8**k]),
    "one cycle": lambda o: schedules.OneCycleLR(o, max_lr=0.1, total_steps=12),
    "sequence": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, total_iters=5), schedules.CosineAnnealingLR(o, 7)], [5]
    ),
    "chain": lambda o: schedules.ChainedScheduler([schedules.ExponentialLR(o, 0.9), schedules.StepLR(o, 3)]),
    "plateau": lambda o: schedules.ReduceLROnPlateau(o, patience=1),
}


def grouped(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for p in parameters:
        (matrices if p.ndim > 1 else vectors).append(p)
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0, "lr": 2e-3}], lr=1e-3
    )


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_the_next_learning_rates_are_those_that_would_have_come(schedule: Callable[..., Any]) -> None:
    def rates(scheduler: Any, optimizer: torch.optim.Optimizer, steps: range) -> list[list[float]]:
        found = []
        for _ in steps:
            optimizer.step()
            scheduler.step(*([1.0] if isinstance(scheduler, schedules.ReduceLROnPlateau) else []))
            found.append([float(g[key]) for g in optimizer.param_groups for key in ("lr", "weight_decay")])
            found[-1] += [beta for g in optimizer.param_groups for beta in g["betas"]]
        return found

    expected = rates(scheduler := schedule(o := job("mlp", grouped).optimizer.base), o, range(12))
    work = job("mlp", grouped)
    scheduler = schedule(work.optimizer)
    assert rates(scheduler, work.optimizer, range(5)) == expected[:5]
    subnet = extract(work.space, work.optimizer.config())
    optimizer = carry_over(work.optimizer, subnet, schedulers=[scheduler])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rates(scheduler, optimizer, range(5, 12)) == expected[5:]


def test_groups_keep_their_order_members_and_settings() -> None:
    work = job("digits", grouped).train(range(4))
    subnet = extract(work.space, work.optimizer.config())
    optimizer = carry_over(work.optimizer, subnet)
    base, small = work.optimizer.base, {id(p): n for n, p in subnet.module.named_parameters()}
    full = {id(p): n for n, p in work.model.named_parameters()}
    assert type(optimizer) is torch.optim.AdamW
    assert len(optimizer.param_groups) == 2
    for own, group in zip(optimizer.param_groups, base.param_groups, strict=True):
        assert [small[id(p)] for p in own["params"]] == [full[id(p)] for p in group["params"]]
        assert {k: v for k, v in own.items() if k != "params"} == {k: v for k, v in group.items() if k != "params"}
    assert optimizer.defaults == base.defaults


def test_nothing_is_shared_with_the_old_optimizer() -> None:
    work = job("mlp", adamw).train(range(4))
    before = copy.deepcopy(work.optimizer.base.state_dict())
    subnet = extract(work.space, work.space.full())  # nothing is cut, so nothing need have been copied
    optimizer = carry_over(work.optimizer, subnet)
    for p in subnet.module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 7.0
    after = work.optimizer.base.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(v, after["state"][k][n]) for k, s in before["state"].items() for n, v in s.items())


class Tied(nn.Module):
    """An encoder and a decoder over one weight, and a parameter that no call uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False)
        self.b.weight = nn.Parameter(self.a.weight.detach().t().contiguous())
        self.c = nn.Linear(6, 8, bias=False)
        self.c.weight = self.a.weight
        self.out = nn.Linear(8, 2)
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.relu(self.c(self.b(torch.relu(self.a(x))))))
        return y


def trained(model: nn.Module, x: Tensor, more: Iterable[Tensor] = (), **options: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD([*model.parameters(), *more], lr=0.01, momentum=0.9, **options)
    for p in [*model.parameters(), *more]:
        p.grad = torch.randn_like(p)
    optimizer.step()
    return optimizer


def test_a_tied_parameter_is_carried_once_and_an_unused_one_whole() -> None:
    model, x = Tied(), torch.randn(4, 6)
    space = build_space(trace(model, x))
    optimizer = trained(model, x)
    subnet = extract(space, space.uniform(0.5))
    now = carry_over(optimizer, subnet)
    names = {id(p): n for n, p in subnet.module.named_parameters()}
    assert sorted(names[id(p)] for g in now.param_groups for p in g["params"]) == sorted(names.values())
    weight = subnet.module.get_parameter("a.weight")
    expected = subnet.slice({"c.weight": optimizer.state[model.a.weight]["momentum_buffer"]})["c.weight"]
    assert torch.equal(now.state[weight]["momentum_buffer"], expected)
    assert expected.shape == weight.shape != model.a.weight.shape
    assert len(now.state[subnet.module.get_parameter("spare")]["momentum_buffer"]) == 3


def test_parameters_of_the_loss_stay_the_same_objects() -> None:
    model, x, temperature = Tied(), torch.randn(4, 6), nn.Parameter(torch.ones(2))
    space = build_space(trace(model, x))
    optimizer = trained(model, x, [temperature])
    now = carry_over(optimizer, extract(space, space.uniform(0.5)))
    assert now.param_groups[0]["params"][-1] is temperature
    assert torch.equal(now.state[temperature]["momentum_buffer"], optimizer.state[temperature]["momentum_buffer"])


def test_named_parameters_keep_their_names() -> None:
    model, x = Tied(), torch.randn(4, 6)
    space = build_space(trace(model, x))
    optimizer = torch.optim.Adam(model.named_parameters())
    now = carry_over(optimizer, extract(space, space.uniform(0.5)))
    assert now.param_groups[0]["param_names"] == optimizer.param_groups[0]["param_names"]


class Sigmoid(nn.Module):
    """Removed units leave 1/2 behind, which the second bias takes over."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.sigmoid(self.a(x)))
        return y


def test_a_folded_bias_and_what_was_rounded_off_it() -> None:
    model, x = Sigmoid(), torch.randn(4, 6)
    space = build_space(trace(model, x))
    optimizer = trained(model, x)
    subnet = extract(space, space.uniform(0.5))
    assert subnet.receipt["folded"] == ["b.bias"]
    now = carry_over(optimizer, subnet)
    bias = subnet.module.get_parameter("b.bias")
    assert torch.equal(now.state[bias]["momentum_buffer"], optimizer.state[model.b.bias]["momentum_buffer"])
    assert [p.shape for g in now.param_groups for p in g["params"]] == [p.shape for p in subnet.module.parameters()]


def test_a_module_that_became_a_graph() -> None:
    work = job("shufflenet_v2").train(range(3))
    graph = trace(work.model.eval(), *work.args)
    graph.model = None  # as for a model that was given as a graph
    space = build_space(graph)
    subnet = extract(space, space.uniform(0.5))
    assert subnet.receipt["module"]["kind"] == "graph"
    now = carry_over(work.optimizer, subnet)
    assert {id(p) for g in now.param_groups for p in g["params"]} == {id(p) for p in subnet.module.parameters()}
    assert all(now.state[p]["momentum_buffer"].shape == p.shape for p in subnet.module.parameters())


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cut() -> tuple[nn.Module, Space, Config, Subnet]:
    model = Tied()
    space = build_space(trace(model, torch.randn(4, 6)))
    config = space.uniform(0.5)
    return model, space, config, extract(space, config)


def test_another_models_optimizer(cut: Any) -> None:
    with pytest.raises(UsageError, match="trains none of the parameters"):
        carry_over(trained(Tied(), torch.randn(4, 6)), cut[3])


def test_another_optimizers_scheduler_changes_nothing(cut: Any) -> None:
    optimizer = trained(cut[0], torch.randn(4, 6))
    good, bad = schedules.StepLR(optimizer, 1), schedules.StepLR(trained(Tied(), torch.randn(4, 6)), 1)
    with pytest.raises(UsageError, match="drives another SGD"):
        carry_over(optimizer, cut[3], schedulers=[good, bad])
    assert good.optimizer is optimizer


def test_state_that_is_not_shaped_like_its_parameter(cut: Any) -> None:
    model = cut[0]
    optimizer = torch.optim.LBFGS(model.parameters())
    optimizer.state[model.a.weight] = {"d": torch.zeros(48), "n_iter": 3}
    with pytest.raises(UnsupportedError, match=r"LBFGS keeps 'd' of it, which has shape \(48,\)") as caught:
        carry_over(optimizer, cut[3])
    assert "a.weight" in caught.value.place
    optimizer.state[model.a.weight] = {"old": [torch.zeros(48)]}
    with pytest.raises(UnsupportedError, match="is a list of tensors"):
        carry_over(optimizer, cut[3])


class Picky(torch.optim.SGD):
    """Its argument is not called as its default is."""

    def __init__(self, params: Any, rate: float) -> None:
        super().__init__(params, lr=rate)


def test_an_optimizer_that_is_not_made_from_its_defaults(cut: Any) -> None:
    optimizer = Picky(cut[0].parameters(), 0.25)
    with pytest.raises(UsageError, match="Picky cannot be made from its defaults") as caught:
        carry_over(optimizer, cut[3])
    assert "build=lambda groups: Picky(groups, ...)" in caught.value.remedy
    now = carry_over(optimizer, cut[3], build=lambda groups: Picky(groups, 0.5))
    assert isinstance(now, Picky)
    assert now.param_groups[0]["lr"] == 0.25, "the groups' own settings go first"
    with pytest.raises(UsageError, match="build did not return an optimizer over the groups"):
        carry_over(optimizer, cut[3], build=lambda _: Picky(cut[0].parameters(), 0.5))


def test_a_loaded_subnet(cut: Any, tmp_path: Any) -> None:
    with pytest.raises(UnsupportedError, match="does not carry the full model"):
        carry_over(trained(cut[0], torch.randn(4, 6)), load(cut[3].save(tmp_path / "subnet")))


def test_not_an_optimizer(cut: Any) -> None:
    with pytest.raises(UsageError, match="expected an optimizer and a Subnet, got Subnet and Subnet"):
        carry_over(cut[3], cut[3])
