"""Other people's training loops: accumulation, mixed precision, clipping, decay, EMA, bases of every kind, kill -9."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from coppice import DHSPG, HESSO, UsageError, build_space, extract, trace
from coppice.passes.train.engine import PruningOptimizer
from train.loops import Base, Job, Method, adam, adamw, job, nonzero_slices, same, sgd, snapshot
from zoo import MODELS

METHODS: list[Method] = [DHSPG, HESSO]
methods = pytest.mark.parametrize("method", METHODS, ids=["dhspg", "hesso"])


class Lion(torch.optim.Optimizer):
    """A user's own optimizer: signs of an average of gradients, decoupled decay, a state of its own making."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 1e-3, decay: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_((0.9 * average + 0.1 * p.grad).sign(), alpha=-group["lr"])
                average.mul_(0.99).add_(p.grad, alpha=0.01)


BASES: dict[str, Base] = {
    "lion": Lion,
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=5e-3, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=5e-3, fused=True),
    "adam maximize": lambda p: torch.optim.Adam(p, lr=5e-3, maximize=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


def ends_right(work: Job) -> None:
    """Redundant units are zero, all of them, and the trained model is the subnet."""
    config = work.optimizer.config()
    assert nonzero_slices(work.space, config) == []
    progress = work.optimizer.progress
    assert progress["zero"] == progress["redundant"] > 0
    subnet = extract(work.space, config)
    work.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(subnet(*work.args), work.model(*work.args), rtol=1e-4, atol=1e-5)


@methods
@pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
def test_any_base_will_do(base: Base, method: Method) -> None:
    work = job("mlp", base, method=method)
    for step in range(12):

        def closure(step: int = step) -> float:
            work.optimizer.zero_grad()
            loss = work.loss(step)
            torch.autograd.backward(loss)
            return float(loss.detach())

        work.optimizer.step(closure)
    ends_right(work)


@pytest.mark.parametrize(("maximize", "name"), [(False, "plain"), (True, "maximize")])
def test_a_base_that_maximises_sees_units_grow_along_their_gradient(maximize: bool, name: str) -> None:
    work = job("mlp", lambda p: torch.optim.SGD(p, lr=0.0, maximize=maximize))
    for p in work.model.parameters():
        p.grad = p.detach().clone()
    work.optimizer.step()
    ratio = work.optimizer.saliency()["layers.0"] / work.space.magnitudes()["layers.0"]
    assert ratio == pytest.approx(1.8 if maximize else 0.2)


# ---- accumulation, precision, clipping -------------------------------------------------------------------------------


@methods
def test_accumulated_gradients_are_one_step(method: Method) -> None:
    whole, parts = job("mlp", sgd, method=method), job("mlp", sgd, method=method)
    for work in (whole, parts):
        work.model.eval()  # no dropout: two halves are the whole
    for step in range(12):
        args, _ = whole.inputs(step)
        whole.optimizer.zero_grad()
        torch.autograd.backward(whole.model(*args).square().mean())
        whole.optimizer.step()
        parts.optimizer.zero_grad()
        for half in args[0].chunk(2):
            torch.autograd.backward(parts.model(half).square().mean() / 2)
        parts.optimizer.step()
    assert parts.optimizer.progress["step"] == 12
    assert parts.optimizer.config() == whole.optimizer.config()
    for name, tensor in snapshot(parts.model).items():
        torch.testing.assert_close(tensor, whole.model.state_dict()[name], rtol=1e-4, atol=1e-6)
    ends_right(parts)


@methods
def test_autocast_with_a_scaler_that_skips_steps(method: Method) -> None:
    work = job("digits", adamw, method=method)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    skipped = 0
    for turn in range(16):
        before = snapshot(work.model), work.optimizer.progress["step"]
        work.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = work.loss(turn)
        if turn % 4 == 1:
            loss = loss * torch.inf
        torch.autograd.backward(scaler.scale(loss))
        scaler.unscale_(work.optimizer)
        torch.nn.utils.clip_grad_norm_(work.model.parameters(), 1.0)
        scaler.step(work.optimizer)
        scaler.update()
        if turn % 4 == 1:
            skipped += 1
            assert work.optimizer.progress["step"] == before[1]
            assert all(torch.equal(p, before[0][name]) for name, p in work.model.named_parameters())
    assert skipped == 4
    assert work.optimizer.progress["step"] == 12
    assert work.optimizer.progress["skipped"] == 0
    ends_right(work)


@methods
def test_parameters_in_bfloat16(method: Method) -> None:
    case = MODELS["mlp_bn"]
    model = case.build().to(torch.bfloat16)
    x = torch.randn(8, 32, dtype=torch.bfloat16)
    space = build_space(trace(model.eval(), x))
    optimizer = method(space, adamw(model.parameters()), {"macs": "50%"}, steps=12, start=0.25, stop=0.75)
    model.train()
    for step in range(12):
        optimizer.zero_grad()
        torch.manual_seed(step)
        torch.autograd.backward(model(x).float().square().mean())
        optimizer.step()
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert nonzero_slices(space, optimizer.config()) == []
    assert optimizer.progress["zero"] == optimizer.progress["redundant"] > 0


@methods
def test_clipping_comes_before_the_step_and_changes_nothing_of_the_promises(method: Method) -> None:
    work = job("digits", sgd, method=method)
    for step in range(12):
        work.optimizer.zero_grad()
        torch.autograd.backward(100 * work.loss(step))
        torch.nn.utils.clip_grad_norm_(work.model.parameters(), 0.1)
        work.optimizer.step()
    ends_right(work)


# ---- weight decay ----------------------------------------------------------------------------------------------------


def coupled(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.3, weight_decay=0.3)


def decoupled(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.3, weight_decay=0.3)


@pytest.mark.parametrize("base", [coupled, decoupled])
@pytest.mark.parametrize("steps", [40, 400], ids=["every step", "strides"])
def test_decay_acts_once_a_step_on_every_unit(base: Base, steps: int) -> None:
    """With zero gradients and no penalty, decay alone moves units: (1 - lr decay) to the power of the steps.

    It is faster than the line that redundant units are held under, and due steps must not repeat it.
    """
    work = job("mlp", base, steps=steps, penalty=(0.0, 0.0, 0.0), epsilon=-1e9)
    before = snapshot(work.model)
    last = work.optimizer.start + (4 if steps == 40 else 20)
    assert work.optimizer.schedule.stride(work.optimizer.start) == (1 if steps == 40 else 12)
    for _ in range(last):
        for p in work.model.parameters():
            p.grad = torch.zeros_like(p)
        work.optimizer.step()
    wanted = before["layers.0.weight"] * (1 - 0.3 * 0.3) ** last
    torch.testing.assert_close(work.model.get_parameter("layers.0.weight").detach(), wanted, rtol=1e-4, atol=0)
    assert work.optimizer.progress["redundant"] > work.optimizer.progress["zero"] == 0


@pytest.mark.parametrize("base", [coupled, decoupled])
def test_decay_is_no_reason_to_leave(base: Base) -> None:
    """Saliency looks at the loss: without gradients it is the magnitude, whatever decays."""
    work = job("mlp", base)
    for _ in range(3):
        for p in work.model.parameters():
            p.grad = torch.zeros_like(p)
        work.optimizer.step()
    sizes = work.space.magnitudes()
    assert all(scores == pytest.approx(sizes[name]) for name, scores in work.optimizer.saliency().items())


# ---- averaged weights ------------------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize("buffers", [True, False])
def test_the_config_applies_to_averaged_weights(method: Method, buffers: bool) -> None:
    work = job("digits", adamw, method=method)
    average = AveragedModel(work.model, avg_fn=lambda old, new, _: 0.9 * old + 0.1 * new, use_buffers=buffers)
    for step in range(12):
        work.step(step)
        average.update_parameters(work.model)
    config = work.optimizer.config()
    work.model.load_state_dict(average.module.state_dict())
    assert nonzero_slices(work.space, config)  # the average trails behind
    work.optimizer.mask(average)
    work.model.load_state_dict(average.module.state_dict())
    ends_right(work)


def test_a_mask_leaves_units_that_are_not_zero_yet_and_other_models_alone() -> None:
    work = job("digits", sgd)
    average = AveragedModel(work.model)
    before = snapshot(average)
    work.optimizer.mask(average)
    work.train(range(4))
    work.optimizer.mask(average)
    assert work.optimizer.progress["zero"] == 0
    assert same(snapshot(average), before)
    with pytest.raises(UsageError, match="no tensors named like the model's"):
        work.train(range(4, 12)).optimizer.mask(MODELS["mlp"].build())


# ---- moments, long stages, moved models ------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize("base", [sgd, adam])
def test_in_long_stages_zero_units_are_zero_after_every_step(method: Method, base: Base) -> None:
    work = job("digits", base, method=method, steps=200)
    assert work.optimizer.schedule.stride(work.optimizer.start) == 6
    seen = []
    for step in range(200):
        work.step(step)
        zeroed, index = work.optimizer._zeroed, work.optimizer._redundant
        if index is not None and bool(zeroed.any()):
            tensors = work.space.graph.tensors
            assert not index.squares(index.gather(tensors))[zeroed].any()
            assert not any(bool(tensors[b.name][b.where[zeroed[b.unit]]].any()) for b in index.buffers)
            seen.append(int(zeroed.sum()))
    assert len(seen) > 50
    assert seen == sorted(seen)
    ends_right(work)


def test_a_model_that_moves_takes_its_new_buffers_along() -> None:
    work = job("digits", sgd).train(range(10))
    work.model.double().float()  # puts new buffers in place; parameters keep theirs, with new memory
    for name, buffer in work.model.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(1.0)
    work.train(range(10, 12))
    for name, axis, where in work_slices(work):
        assert not work.model.state_dict()[name].index_select(axis, where).any(), name


def work_slices(work: Job) -> list[tuple[str, int, Tensor]]:
    from train.loops import redundant_slices

    return list(redundant_slices(work.space, work.optimizer.config()))


class Sparse(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 12, sparse=True)
        self.hidden = nn.Linear(12, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.relu(self.hidden(self.table(x))))
        return logits


def test_sparse_gradients() -> None:
    model, tokens = Sparse().eval(), torch.arange(8).reshape(2, 4)
    space = build_space(trace(model, tokens))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DHSPG(space, base, {"macs": "50%"}, steps=12, start=0.25, stop=0.75)
    for _ in range(12):
        optimizer.zero_grad()
        torch.autograd.backward(model(tokens).square().mean())
        optimizer.step()
    assert nonzero_slices(space, optimizer.config()) == []


# ---- killed and resumed ----------------------------------------------------------------------------------------------


def train_and_save(make: Callable[[], Job], file: Path, die_at: int) -> None:
    """What a process does: go on from the file, save after every step, and be killed before step ``die_at`` ends."""
    work, first = make(), 0
    if file.exists():
        stored = torch.load(file, weights_only=True)
        work.model.load_state_dict(stored["model"])
        work.optimizer.load_state_dict(stored["optimizer"])
        first = stored["step"]
    for step in range(first, work.optimizer.steps):
        work.step(step)
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        stored = {"model": work.model.state_dict(), "optimizer": work.optimizer.state_dict(), "step": step + 1}
        torch.save(stored, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)


@pytest.mark.parametrize(
    ("name", "base", "options"),
    [
        ("digits", adamw, {"method": DHSPG}),
        ("mlp_bn", sgd, {"method": HESSO, "cric": True}),
        ("digits", adam, {"method": HESSO, "steps": 60}),
    ],
    ids=["dhspg", "hesso with its cycle", "hesso at strides"],
)
def test_a_run_killed_ten_times_ends_with_the_same_bits(
    tmp_path: Path, name: str, base: Base, options: dict[str, Any]
) -> None:
    def make() -> Job:
        return job(name, base, **options)

    steps = options.get("steps", 12)
    deaths = sorted(torch.randperm(steps - 1, generator=torch.Generator().manual_seed(1))[:10].tolist())
    for die_at in [*deaths, -1]:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train_and_save(make, tmp_path / "run.pt", die_at)
                code = 0
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) if die_at >= 0 else os.WEXITSTATUS(status) == 0
    stored = torch.load(tmp_path / "run.pt", weights_only=True)
    whole = make().train(range(steps))
    resumed = make()
    resumed.model.load_state_dict(stored["model"])
    resumed.optimizer.load_state_dict(stored["optimizer"])
    assert same(snapshot(resumed.model), snapshot(whole.model))
    assert resumed.optimizer.config() == whole.optimizer.config()
    assert resumed.optimizer.progress == whole.optimizer.progress


def test_states_of_another_version_are_refused() -> None:
    work = job("mlp", sgd)
    state = work.optimizer.state_dict()
    state["pruning"]["facts"]["version"] = 0
    with pytest.raises(UsageError, match=r"version: 0 there, 1 here"):
        work.optimizer.load_state_dict(state)


def test_a_state_moved_by_a_loader_is_taken_as_it_is() -> None:
    """Wrappers of optimizers (accelerate does) save the state, move its tensors and load it back at once."""
    work = job("mlp", adam).train(range(5))
    before = work.optimizer.progress
    moved = torch.utils._pytree.tree_map(
        lambda x: x.clone() if isinstance(x, Tensor) else x, work.optimizer.state_dict()
    )
    work.optimizer.load_state_dict(moved)
    assert work.optimizer.progress == before
    assert isinstance(work.optimizer, PruningOptimizer)
    work.train(range(5, 12))
    assert same(snapshot(work.model), snapshot(job("mlp", adam).train(range(12)).model))
