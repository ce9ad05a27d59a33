"""What is cut are the model's weights as they are now, whatever happened to the model since it was traced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coppice import CoppiceError, Space, build_space, extract, prune, trace
from coppice.passes.extract.check import difference
from zoo import MODELS


@pytest.fixture
def model() -> nn.Module:
    return MODELS["digits"].build()


@pytest.fixture
def space(model: nn.Module) -> Space:
    return build_space(trace(model, torch.randn(2, 1, 8, 8)))


def agrees(space: Space, model: nn.Module, x: Tensor) -> None:
    """The subnet that keeps everything is the model."""
    model.eval()
    subnet = extract(space, space.full())
    with torch.no_grad():
        assert difference(model(x), subnet(x)) < 1e-5


def test_after_training(space: Space, model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    for _ in range(3):
        torch.autograd.backward(model(torch.randn(8, 1, 8, 8) + 1).square().mean())
        optimizer.step()
    agrees(space, model, torch.randn(4, 1, 8, 8))


def test_after_loading_a_checkpoint(space: Space, model: nn.Module) -> None:
    other = {name: tensor * 1.1 for name, tensor in MODELS["digits"].build().state_dict().items()}
    model.load_state_dict(other)
    agrees(space, model, torch.randn(4, 1, 8, 8))


def test_after_loading_a_checkpoint_by_assignment(space: Space, model: nn.Module) -> None:
    other = {name: tensor * 1.1 for name, tensor in MODELS["digits"].build().state_dict().items()}
    model.load_state_dict(other, assign=True)
    agrees(space, model, torch.randn(4, 1, 8, 8))


def test_after_replacing_a_parameter(space: Space, model: nn.Module) -> None:
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    head.weight = nn.Parameter(torch.randn_like(head.weight))
    agrees(space, model, torch.randn(4, 1, 8, 8))


def test_after_moving_it_to_another_precision(space: Space, model: nn.Module) -> None:
    """As ``model.to(device)`` does, this keeps parameters and replaces buffers."""
    model.double().train()
    with torch.no_grad():
        model(torch.randn(8, 1, 8, 8, dtype=torch.float64) + 3)
    agrees(space, model, torch.randn(4, 1, 8, 8, dtype=torch.float64))


def test_scores_see_them_too(space: Space, model: nn.Module) -> None:
    other = model.state_dict()
    other["block1.conv1.weight"] = other["block1.conv1.weight"].clone()
    other["block1.conv1.weight"][:8] *= 100
    model.load_state_dict(other, assign=True)
    assert set(prune(space, {"macs": "30%"})["block1.conv1"]) <= set(range(8))


def test_a_model_that_diverged_is_not_validated(space: Space, model: nn.Module) -> None:
    """NaN equals NaN everywhere, which proves nothing."""
    with torch.no_grad():
        model.get_parameter("head.weight")[3] = float("nan")
    with pytest.raises(CoppiceError, match="NaN"):
        extract(space, space.uniform(0.5))
