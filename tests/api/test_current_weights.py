"""What is cut are the model's weights as they are now, whatever happened to the model since it was traced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coppice import CoppiceError, Space, UsageError, build_space, extract, prune, trace
from coppice.passes.extract.check import difference
from zoo import MODELS


class Tied(nn.Module):
    """Two layers over one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        return y


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
    before = prune(space, {"macs": "30%"})
    weight = model.state_dict()["block1.conv1.weight"]
    scale = torch.ones(len(weight)).index_fill(0, torch.tensor(before["block1.conv1"]), 0.01)
    model.load_state_dict({"block1.conv1.weight": weight * scale[:, None, None, None]}, strict=False, assign=True)
    after = prune(space, {"macs": "30%"})
    assert after != before
    assert after == prune(build_space(trace(model, torch.randn(2, 1, 8, 8))), {"macs": "30%"})


def test_a_tensor_of_another_shape_is_not_the_model_that_was_traced(space: Space, model: nn.Module) -> None:
    model.set_submodule("head", nn.Linear(32, 7))
    with pytest.raises(UsageError, match=r"tensor head.weight: its shape is \(7, 32\) and was \(10, 32\)"):
        prune(space, {"macs": "30%"})


def test_a_parameter_that_is_gone(space: Space, model: nn.Module) -> None:
    model.set_submodule("head", nn.Identity())
    with pytest.raises(UsageError, match=r"tensor head.weight: the model no longer has it"):
        extract(space, space.full())


def test_a_tie_that_broke() -> None:
    """Loading by assignment unties shared weights; only equal ones can be cut as one."""
    model = Tied()
    space = build_space(trace(model, torch.randn(2, 6)))
    model.load_state_dict({"b.weight": model.a.weight.detach().clone()}, strict=False, assign=True)
    agrees(space, model, torch.randn(4, 6))
    model.load_state_dict({"b.weight": torch.randn(6, 6)}, strict=False, assign=True)
    with pytest.raises(UsageError, match="was one tensor with"):
        extract(space, space.full())


def test_a_model_that_diverged_is_not_validated(space: Space, model: nn.Module) -> None:
    """NaN equals NaN everywhere, which proves nothing."""
    with torch.no_grad():
        model.get_parameter("head.weight")[3] = float("nan")
    with pytest.raises(CoppiceError, match="NaN"):
        extract(space, space.uniform(0.5))
