"""What goes with the weights is cut like them, and weights other than the model's are extracted: averages of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from coppice import Subnet, UsageError, build_space, extract, trace
from coppice.passes.extract.check import difference
from zoo import MODELS


def model_and_space(name: str) -> tuple[nn.Module, Any, Any]:
    case = MODELS[name]
    model = case.build()
    args, kwargs = case.args(4)
    return model, build_space(trace(model, kwargs or args)), (args, kwargs)


@pytest.fixture
def digits() -> tuple[nn.Module, Subnet]:
    model, space, _ = model_and_space("digits")
    return model, extract(space, space.uniform(0.5))


@pytest.mark.parametrize("name", ["digits", "densenet", "vit_mha", "lstm_language"])
def test_slices_of_the_weights_are_the_subnets(name: str) -> None:
    model, space, _ = model_and_space(name)
    subnet = extract(space, space.uniform(0.5))
    assert not subnet.receipt["folded"]
    found, own = subnet.slice(model.state_dict()), subnet.module.state_dict()
    assert found.keys() == model.state_dict().keys()
    for key in own.keys() & found.keys():
        assert torch.equal(found[key], own[key]), key


def test_slices_are_copies_of_any_kind_of_number(digits: tuple[nn.Module, Subnet]) -> None:
    model, subnet = digits
    mask = torch.ones_like(model.get_parameter("stem.weight"), dtype=torch.bool)
    half = model.get_parameter("head.weight").detach().to(torch.float16)
    found = subnet.slice({"stem.weight": mask, "head.weight": half})
    assert found["stem.weight"].dtype is torch.bool
    assert found["head.weight"].shape == subnet.module.get_parameter("head.weight").shape
    whole = subnet.slice({"head.bias": model.get_parameter("head.bias")})["head.bias"]
    whole.zero_()
    assert bool(model.get_parameter("head.bias").any())


def test_slices_of_unknown_names_and_other_shapes_are_refused(digits: tuple[nn.Module, Subnet]) -> None:
    subnet = digits[1]
    with pytest.raises(UsageError, match=r"no tensor of the full model is called 'stem\.wight'") as caught:
        subnet.slice({"stem.wight": torch.zeros(1)})
    assert "'stem.weight'" in caught.value.remedy
    with pytest.raises(UsageError, match=r"its shape is \(8, 1, 3, 3\), and the full model's is \(16, 1, 3, 3\)"):
        subnet.slice({"stem.weight": torch.zeros(8, 1, 3, 3)})


@pytest.mark.parametrize("name", ["digits", "mlp_bn", "vit_mha"])
def test_an_average_of_the_weights_is_extracted(name: str) -> None:
    model, space, (args, _) = model_and_space(name)
    average = AveragedModel(model, avg_fn=lambda mean, new, _: mean.lerp(new, 0.5))
    average.update_parameters(model)  # the first update takes the weights as they are
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.3)
    average.update_parameters(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    subnet = extract(space, space.uniform(0.5), weights=average)
    other = extract(space, space.uniform(0.5))
    cut = subnet.slice(dict(average.module.named_parameters()))
    assert all(torch.equal(cut[n], p) for n, p in subnet.module.named_parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert subnet.receipt["equivalence"]["error"] < 1e-9
    with torch.no_grad():
        assert difference(subnet.reference()(*args), subnet(*args)) < 1e-5
        assert difference(other(*args), subnet(*args)) > 1e-3
    same = extract(space, space.uniform(0.5), weights=average.module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(same.module.parameters(), subnet.module.parameters(), strict=True))


class Sigmoid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.sigmoid(self.a(x)))
        return y


def test_constants_are_folded_with_the_weights_given() -> None:
    model = Sigmoid().eval()
    space = build_space(trace(model, torch.randn(4, 6)))
    weights = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    subnet = extract(space, space.uniform(0.5), weights=weights)
    assert subnet.receipt["folded"] == ["b.bias"]
    assert subnet.receipt["equivalence"]["error"] < 1e-9


def test_bad_weights_are_refused_and_the_model_is_untouched() -> None:
    model, space, _ = model_and_space("digits")
    state = dict(model.state_dict())
    bad: list[tuple[Any, str]] = [
        ({**state, "stem.wight": torch.zeros(1)}, "no tensor of the model is called"),
        ({n: t for n, t in state.items() if n != "head.bias"}, "the weights lack this parameter"),
        ({**state, "head.bias": torch.zeros(3)}, r"its shape is \(3,\), and the model's is \(10,\)"),
        ({**state, "head.bias": torch.full((10,), torch.nan)}, "10 of 10 values are NaN"),
        (3, "it is a int"),
    ]
    for weights, message in bad:
        with pytest.raises(UsageError, match=message):
            extract(space, space.uniform(0.5), weights=weights)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
