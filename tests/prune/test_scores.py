"""Scores: what each number is, by hand on a net small enough for that, and that scoring leaves the model alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coppice import Config, Graph, Space, UnsupportedError, UsageError, build_space, prune, trace
from coppice.passes.prune.scores import magnitude, random, taylor, unit_scores
from prune.nets import Tiny, space_of

Batch = tuple[Tensor, Any]


@pytest.fixture
def model() -> nn.Module:
    net = Tiny()
    with torch.no_grad():
        for tensor in (*net.parameters(), net.norm.running_mean):
            assert tensor is not None
            tensor.normal_(0.3, 0.5)
    return net


@pytest.fixture
def space(model: nn.Module) -> Space:
    return build_space(trace(model, torch.randn(2, 2, 6, 6)))


def batches(count: int, targets: Callable[[], Any]) -> list[Batch]:
    return [(torch.randn(4, 2, 6, 6), targets()) for _ in range(count)]


def by_hand(model: nn.Module, data: list[Batch], loss: Callable[[Tensor, Any], Tensor]) -> dict[str, np.ndarray]:
    """|sum x g| over each unit's rows, biases and affine, with the gradient averaged over batches."""
    model.eval()
    grads: dict[str, Tensor] = {}
    for inputs, targets in data:
        model.zero_grad()
        torch.autograd.backward(loss(model(inputs), targets))
        for name, p in model.named_parameters():
            assert p.grad is not None
            grads[name] = grads.get(name, 0) + p.grad / len(data)
    model.zero_grad()
    rows = {name: (p.detach() * grads[name]).flatten(1).sum(1) if p.ndim > 1 else p.detach() * grads[name]
            for name, p in model.named_parameters()}  # fmt: skip
    made = {
        "first": ("first.weight", "first.bias", "norm.weight", "norm.bias"),
        "second": ("second.weight", "second.bias"),
        "hidden": ("hidden.weight", "hidden.bias"),
    }
    return {family: torch.stack([rows[n] for n in names]).sum(0).abs().numpy() for family, names in made.items()}


@pytest.mark.parametrize(
    ("targets", "loss"),
    [
        (lambda: torch.randint(0, 3, (4,)), F.cross_entropy),
        (lambda: torch.randn(4, 3), F.mse_loss),
        (lambda: None, lambda out, _: out.square().mean()),
    ],
    ids=["cross entropy for classes", "squared error for numbers", "mean square of the output without targets"],
)
def test_taylor_is_the_first_order_change_of_the_loss(
    model: nn.Module, space: Space, targets: Callable[[], Any], loss: Callable[[Tensor, Any], Tensor]
) -> None:
    data = batches(3, targets)
    expected = by_hand(model, data, loss)
    calibration = data if data[0][1] is not None else [inputs for inputs, _ in data]
    found = taylor(space, calibration)
    assert set(found) == set(expected)
    for family, scores in expected.items():
        np.testing.assert_allclose(found[family], scores, rtol=1e-4, atol=1e-6)


def test_taylor_takes_the_users_loss_and_any_targets(model: nn.Module, space: Space) -> None:
    def loss(output: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return (output - targets["wanted"]).abs().sum()

    data = batches(1, lambda: {"wanted": torch.randn(4, 3)})
    found = taylor(space, data, loss)
    for family, scores in by_hand(model, data, loss).items():
        np.testing.assert_allclose(found[family], scores, rtol=1e-4, atol=1e-6)


def test_taylor_leaves_model_gradients_and_mode_untouched(model: nn.Module, space: Space) -> None:
    model.train()
    first, *others = model.parameters()
    first.requires_grad_(False)
    for p in others:
        p.grad = torch.full_like(p, 7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prune(space, {"macs": 0.5}, "taylor", batches(2, lambda: torch.randint(0, 3, (4,))))
    assert model.training
    assert all(module.training for module in model.modules())
    assert not first.requires_grad
    assert first.grad is None
    assert all(p.requires_grad and p.grad is not None and bool((p.grad == 7.0).all()) for p in others)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_taylor_works_where_the_caller_has_turned_gradients_off(space: Space) -> None:
    data = batches(1, lambda: torch.randint(0, 3, (4,)))
    expected = taylor(space, data)
    with torch.no_grad():
        found = taylor(space, data)
    assert all(np.array_equal(found[name], scores) for name, scores in expected.items())


def test_a_unit_that_does_nothing_scores_zero(model: nn.Module, space: Space) -> None:
    with torch.no_grad():
        model.get_parameter("second.weight")[4].zero_()
        model.get_parameter("second.bias")[4].zero_()
    scores = taylor(space, batches(1, lambda: torch.randint(0, 3, (4,))))["second"]
    assert np.flatnonzero(scores == 0).tolist() == [4]


@pytest.mark.parametrize("calibration", [None, [], iter(())])
def test_taylor_without_data_says_what_to_pass(space: Space, calibration: Any) -> None:
    with pytest.raises(UsageError, match="needs calibration batches") as caught:
        prune(space, {"macs": 0.5}, "taylor", calibration)
    assert "calibration=" in caught.value.remedy


def test_taylor_reads_a_generator_once(space: Space) -> None:
    data = batches(2, lambda: torch.randint(0, 3, (4,)))
    assert prune(space, {"macs": 0.5}, "taylor", (b for b in data)) == prune(space, {"macs": 0.5}, "taylor", data)


def test_taylor_on_meta_tensors_is_refused() -> None:
    with torch.device("meta"):
        graph = trace(Tiny(), torch.randn(2, 2, 6, 6))
    with pytest.raises(UnsupportedError, match="meta"):
        prune(build_space(graph), {"macs": 0.5}, "taylor", [torch.randn(2, 2, 6, 6)])


class Several(nn.Module):
    """Two inputs, one by name; a dict of results, the first of them whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, a: Tensor, *, b: Tensor) -> dict[str, Tensor]:
        logits = self.out(torch.relu(self.hidden(a + b)))
        return {"best": logits.argmax(1), "logits": logits}


def test_batches_may_be_dicts_of_inputs_and_results_nested() -> None:
    model = Several()
    inputs = {"a": torch.randn(5, 4), "b": torch.randn(5, 4)}
    space = build_space(trace(model, inputs))
    loss = F.cross_entropy(model(**inputs)["logits"], torch.arange(5) % 3)
    wanted = [model.hidden.weight, model.hidden.bias]
    weight, bias = torch.autograd.grad(loss, wanted)
    expected = ((model.hidden.weight * weight).sum(1) + model.hidden.bias * bias).abs().detach()
    found = taylor(space, [(inputs, torch.arange(5) % 3)])["hidden"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)


# ---- the others ----------------------------------------------------------------------------------------------------


def test_magnitude_is_the_share_of_each_tensors_squares(model: nn.Module, space: Space) -> None:
    expected = torch.zeros(8, dtype=torch.float64)
    for name in ("first.weight", "first.bias", "norm.weight", "norm.bias"):
        squares = model.get_parameter(name).detach().double().square()
        expected += squares.reshape(8, -1).sum(1) / squares.sum()
    np.testing.assert_allclose(magnitude(space)["first"], expected.numpy(), rtol=1e-12)
    assert unit_scores(space, "magnitude", None, None, 0).keys() == magnitude(space).keys()


def test_magnitude_on_meta_tensors_keeps_the_first_units() -> None:
    with torch.device("meta"):
        graph: Graph = trace(Tiny(), torch.randn(2, 2, 6, 6))
    config = prune(build_space(graph), {"macs": 0.5})
    assert all(units == tuple(range(len(units))) for units in config.values())


def test_random_is_seeded_and_leaves_global_generators_alone() -> None:
    space = space_of("digits")
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    first, again, other = random(space, 5), random(space, 5), random(space, 6)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # type: ignore[index]  # noqa: NPY002


def test_own_scores_decide(space: Space) -> None:
    scores: dict[str, Any] = {"first": list(range(8)), "second": torch.arange(10), "hidden": tuple(range(12))}
    config = prune(space, {"macs": 0.5}, scores)
    assert config == Config.of({n: range(len(scores[n]) - len(units), len(scores[n])) for n, units in config.items()})


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"first": np.ones(7)}, "family first"),
        ({"first": np.ones((8, 1))}, "family first"),
        ({"first": 1.0}, "family first"),
        ({"first": None}, "family first"),
        ({"first": ["much"] * 8}, "family first"),
        ({"frist": np.ones(8)}, "frist"),
    ],
)
def test_own_scores_are_checked(space: Space, change: dict[str, Any], place: str) -> None:
    scores = {f.name: np.ones(f.size) for f in space.families}
    with pytest.raises(UsageError) as caught:
        prune(space, {"macs": 0.5}, {**scores, **change})
    assert caught.value.place == place


def test_a_family_without_scores_is_named(space: Space) -> None:
    with pytest.raises(UsageError, match="family hidden: expected 12 scores"):
        prune(space, {"macs": 0.5}, {"first": np.ones(8), "second": np.ones(10)})


@pytest.mark.parametrize(("score", "meant"), [("magnitud", "magnitude"), ("tayler", "taylor"), ("rand", "random")])
def test_an_unknown_score_suggests_the_nearest(space: Space, score: str, meant: str) -> None:
    with pytest.raises(UsageError, match=score) as caught:
        prune(space, {"macs": 0.5}, score)
    assert meant in caught.value.remedy


@pytest.mark.parametrize("score", [None, 3, [1, 2, 3]])
def test_what_is_no_score_is_refused(space: Space, score: Any) -> None:
    with pytest.raises(UsageError, match="is no score"):
        prune(space, {"macs": 0.5}, score)
