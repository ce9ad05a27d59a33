"""`compress`: one call from a model to a validated subnet, and nothing of the user's is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coppice import BudgetError, Subnet, UsageError, build_space, compress, extract, prune, recalibrate, trace
from coppice.passes.extract.check import difference
from zoo import MODELS


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 8)


def test_one_call_gives_a_module_within_the_budget() -> None:
    model = MODELS["digits"].build()
    subnet = compress(model, images(), budget={"macs": "50%"})
    assert isinstance(subnet, Subnet)
    assert type(subnet.module) is type(model)
    macs = subnet.receipt["costs"]["macs"]
    assert 0.99 * 0.5 <= macs["after"] / macs["before"] <= 0.5
    assert subnet.receipt["validated"]
    assert subnet.receipt["equivalence"]["error"] < 1e-9
    x = images(7)
    with torch.no_grad():
        assert difference(subnet.reference()(x), subnet(x)) < 1e-5


def test_it_is_its_parts_in_a_row() -> None:
    data = [(images(), torch.randint(0, 10, (4,))) for _ in range(3)]
    options: dict[str, Any] = {"ignore": "block3.*", "round_to": 2, "bounds": {"stem": 10}}
    model = MODELS["digits"].build()
    one = compress(model, images(), budget={"macs": 0.6}, score="taylor", calibration=iter(data), **options)
    space = build_space(trace(model, images()), **options)
    two = recalibrate(extract(space, prune(space, {"macs": 0.6}, "taylor", data)), data)
    assert one.config == two.config
    assert one.receipt["recalibrated"] == two.receipt["recalibrated"] != []
    state = two.module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.module.state_dict().items())


def test_seeds_and_scores_are_passed_on() -> None:
    model = MODELS["mlp"].build()
    x = torch.randn(2, 32)
    one, two, three = (compress(model, x, budget={"macs": 0.5}, score="random", seed=s) for s in (1, 1, 2))
    assert one.config == two.config != three.config
    assert (one.receipt["seed"], three.receipt["seed"]) == (1, 2)


def test_the_users_model_is_left_as_it_was() -> None:
    model = MODELS["digits"].build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    subnet = compress(model, images(), budget={"macs": 0.5}, score="taylor", calibration=[images()])
    with torch.no_grad():
        for tensor in subnet.module.state_dict().values():
            tensor.zero_()
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert [id(p) for p in model.parameters()] == identities
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_subnet_is_an_ordinary_module_to_train_further() -> None:
    subnet = compress(MODELS["digits"].build(), images(), budget={"macs": 0.5})
    assert not subnet.module.training
    optimizer = torch.optim.SGD(subnet.module.train().parameters(), lr=0.05)
    x, y = images(32), torch.randint(0, 10, (32,))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(subnet(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("calibration", [None, [], iter(())])
def test_without_calibration_batches_statistics_stay(calibration: Any) -> None:
    subnet = compress(MODELS["digits"].build(), images(), budget={"macs": 0.5}, calibration=calibration)
    assert "recalibrated" not in subnet.receipt


def test_errors_come_through_as_they_are() -> None:
    model = MODELS["digits"].build()
    with pytest.raises(BudgetError) as caught:
        compress(model, images(), budget={"macs": 1})
    assert compress(model, images(), budget=caught.value.closest).config is not None
    with pytest.raises(UsageError, match="metric"):
        compress(model, images(), budget={"mcas": "50%"})
    with pytest.raises(UsageError, match="layer or parameter"):
        compress(model, images(), budget={"macs": "50%"}, ignore="blokc1")
    with pytest.raises(UsageError, match="family"):
        compress(model, images(), budget={"macs": "50%"}, bounds={"steam": 3})
