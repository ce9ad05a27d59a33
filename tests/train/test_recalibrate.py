"""Batch-norm statistics measured again: what they are, and that the subnet stays equal to its reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from coppice import (
    Subnet,
    UnsupportedError,
    UsageError,
    build_space,
    compress,
    extract,
    load,
    prune,
    recalibrate,
    trace,
)
from coppice.passes.extract.check import difference
from zoo import MODELS


def cut(name: str, share: float = 0.4) -> Subnet:
    case = MODELS[name]
    args, kwargs = case.args(4)
    space = build_space(trace(case.build(), kwargs or args))
    return extract(space, prune(space, {"macs": share}, "random"))


def norms(model: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    return (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def by_hand(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """A training-mode pass with cumulative averages, torch's own way to measure batch-norm statistics."""
    for norm in norms(model.train()):
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return {name: b.clone() for name, b in model.eval().named_buffers() if name.endswith(("_mean", "_var"))}


@pytest.mark.parametrize(("name", "count"), [("digits", 1), ("digits", 3), ("densenet", 2), ("mlp_bn", 3)])
def test_statistics_are_those_of_a_training_pass(name: str, count: int) -> None:
    subnet = cut(name)
    for module in subnet.module.modules():
        if isinstance(module, nn.Dropout):  # dropout rests while statistics are measured
            module.p = 0.0
    size = (16, *MODELS[name].args(1)[0][0].shape[1:])
    batches = [torch.randn(size) * 2 + 1 for _ in range(count)]
    recalibrate(subnet, batches)
    found = {n: b.clone() for n, b in subnet.module.named_buffers() if n.endswith(("_mean", "_var"))}
    expected = by_hand(subnet.module, batches)
    assert found.keys() == expected.keys()
    assert subnet.receipt["recalibrated"] == sorted(found)
    for buffer, values in expected.items():
        torch.testing.assert_close(found[buffer], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["digits", "shufflenet_v2"])
def test_the_reference_gets_the_same_statistics_and_stays_equal(name: str) -> None:
    subnet = cut(name)
    size = MODELS[name].args(8)[0][0].shape
    x = torch.randn(size)
    with torch.no_grad():
        before = subnet(x)
        assert recalibrate(subnet, [torch.randn(size) * 2 + 1]) is subnet
        after = subnet(x)
        assert difference(before, after) > 1e-3
        assert difference(subnet.reference()(x), after) < 1e-5
        assert difference(subnet.graph.run(x), after) < 1e-5
    assert subnet.receipt["equivalence"]["error"] < 1e-9


def test_nothing_but_statistics_changes() -> None:
    subnet = cut("digits")
    before = {name: tensor.clone() for name, tensor in subnet.module.state_dict().items()}
    recalibrate(subnet, [torch.randn(8, 1, 8, 8)])
    assert not subnet.module.training
    changed = {n for n, tensor in subnet.module.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed == {n for n in before if n.endswith(("running_mean", "running_var"))}


def test_the_users_model_keeps_its_statistics() -> None:
    case = MODELS["digits"]
    model = case.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compress(model, case.args(4)[0], budget={"macs": "50%"}, calibration=[torch.randn(8, 1, 8, 8)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("pairs", [True, False], ids=["inputs and targets", "inputs"])
def test_batches_may_carry_targets(pairs: bool) -> None:
    x = torch.randn(8, 1, 8, 8)
    one = recalibrate(cut("digits"), [(x, torch.arange(8))] if pairs else [x])
    two = recalibrate(cut("digits"), (batch for batch in [(x,)]))
    assert all(torch.equal(a, b) for a, b in zip(one.module.buffers(), two.module.buffers(), strict=True))


def test_without_a_batch_it_is_an_error_and_nothing_changes() -> None:
    subnet = cut("digits")
    before = {name: tensor.clone() for name, tensor in subnet.module.state_dict().items()}
    with pytest.raises(UsageError, match="no calibration batch") as caught:
        recalibrate(subnet, [])
    assert "at least one batch" in caught.value.remedy
    assert all(torch.equal(tensor, before[name]) for name, tensor in subnet.module.state_dict().items())


def test_without_batch_norms_it_does_nothing() -> None:
    subnet = cut("mlp")
    before = {name: tensor.clone() for name, tensor in subnet.module.state_dict().items()}
    assert recalibrate(subnet, [torch.randn(8, 32)]).receipt["recalibrated"] == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in subnet.module.state_dict().items())


class Stateless(nn.Module):
    """Its first norm always uses the batch; only the second has statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 12)
        self.batch = nn.BatchNorm1d(12, track_running_stats=False)
        self.b = nn.Linear(12, 8)
        self.running = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.batch(self.a(x)))
        result: Tensor = self.out(torch.relu(self.running(self.b(x))))
        return result


def test_norms_without_statistics_are_left_out() -> None:
    space = build_space(trace(Stateless().eval(), torch.randn(4, 6)))
    subnet = recalibrate(extract(space, space.uniform(0.5)), [torch.randn(16, 6)])
    assert subnet.receipt["recalibrated"] == ["running.running_mean", "running.running_var"]


def test_a_subnet_trained_further_can_be_recalibrated() -> None:
    """Fine-tuning moves the weights, not the proof of the cut."""
    for name in ("digits", "shufflenet_v2"):  # the user's class, and a GraphModule
        subnet = cut(name)
        size = MODELS[name].args(8)[0][0].shape
        with torch.no_grad():
            for p in subnet.module.parameters():
                p.mul_(1.5)
        recalibrate(subnet, [torch.randn(size)])
        assert subnet.receipt["recalibrated"]


def test_a_loaded_subnet_says_what_it_lacks(tmp_path: object) -> None:
    loaded = load(cut("mlp_bn").save(f"{tmp_path}/subnet"))
    with pytest.raises(UnsupportedError, match="does not carry the full model"):
        recalibrate(loaded, [torch.randn(8, 32)])
