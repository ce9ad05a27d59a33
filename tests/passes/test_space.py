"""What `build_space` offers: options that hold units back, widths, and configs that repeat under a seed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coppice
from coppice import Config, Graph, Space
from coppice.core.errors import UsageError


class Net(nn.Module):
    """Two convolutions, a normalised stage, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.stage = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.hidden = nn.Linear(24, 32)
        self.out = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(F.relu(self.stem(x))).mean((2, 3))
        y: Tensor = self.out(F.relu(self.hidden(x)))
        return y


class Heads(nn.Module):
    """Four heads of depth three."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12)
        self.out = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], 4, 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> Graph:
    return coppice.trace(model, torch.randn(2, 3, 6, 6))


@pytest.fixture(scope="module")
def space(graph: Graph) -> Space:
    return coppice.build_space(graph)


def names(space: Space) -> set[str]:
    return {family.name for family in space.families}


ALL = {"stem", "stage.0", "hidden"}


def test_families_have_their_module_s_name_and_size(space: Space) -> None:
    assert {f.name: f.size for f in space.families} == {"stem": 16, "stage.0": 24, "hidden": 32}
    stage = {str(s): s.masked for s in space.family("stage.0").slices}
    assert stage == {
        "stage.0.weight[out]": True,
        "stage.0.bias[out]": True,
        "stage.1.weight[channel]": True,
        "stage.1.bias[channel]": True,
        "stage.1.running_mean[channel]": True,
        "stage.1.running_var[channel]": False,
        "hidden.weight[in]": False,
    }


# ---- ignore ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ignore", "held"),
    [
        ("stem", ["stem"]),
        (["stem", "hidden"], ["hidden", "stem"]),
        (["stem.weight"], ["stem"]),
        (["stage.*"], ["stage.0"]),
        (["stage"], ["stage.0"]),
        (["stage.1"], ["stage.0"]),
        (["s*"], ["stage.0", "stem"]),
        (["?tem"], ["stem"]),
        ([re.compile("^h")], ["hidden"]),
        ([re.compile(r"\.0\.")], ["stage.0"]),
        ([nn.Conv2d], ["stage.0", "stem"]),
        ([nn.BatchNorm2d], ["stage.0"]),
        ([nn.Module], ["hidden", "stage.0", "stem"]),
    ],
    ids=str,
)
def test_what_is_ignored_keeps_its_outputs(graph: Graph, ignore: Any, held: list[str]) -> None:
    space = coppice.build_space(graph, ignore=ignore)
    assert names(space) == ALL - set(held)
    frozen = {entry.axis for entry in space.frozen if "ignored on request" in entry.reason}
    assert all(f"{name}.weight[out]" in frozen for name in held)


def test_a_module_can_be_ignored_itself(model: nn.Module, graph: Graph) -> None:
    assert isinstance(model, Net)
    space = coppice.build_space(graph, ignore=[model.stage])
    assert names(space) == ALL - {"stage.0"}
    assert "Sequential" in next(e.reason for e in space.frozen if e.axis == "stage.0.weight[out]")


def test_inputs_of_an_ignored_layer_may_still_leave(graph: Graph) -> None:
    """To ignore a layer keeps what it makes, not what it reads."""
    space = coppice.build_space(graph, ignore="hidden")
    assert "hidden.weight[in]" in {str(s) for s in space.family("stage.0").slices}


@pytest.mark.parametrize("entry", ["stam", "stem.w", re.compile("zzz"), nn.LSTM, 3], ids=str)
def test_what_matches_nothing_is_refused(graph: Graph, entry: Any) -> None:
    with pytest.raises(UsageError):
        coppice.build_space(graph, ignore=[entry])


# ---- widths ----------------------------------------------------------------------------------------------------------


def test_round_to_makes_widths_multiples(graph: Graph) -> None:
    space = coppice.build_space(graph, round_to=8)
    assert {f.name: f.widths for f in space.families} == {
        "stem": (8, 16),
        "stage.0": (8, 16, 24),
        "hidden": (8, 16, 24, 32),
    }
    for seed in range(5):
        assert all(width % 8 == 0 for width in space.random(seed).widths().values())
    subnet = coppice.extract(space, space.uniform(0.4))
    assert subnet.graph.tensors["stage.0.weight"].shape == (8, 8, 3, 3)


def test_round_to_keeps_a_width_that_is_no_multiple_itself(graph: Graph) -> None:
    """All units may always stay."""
    assert coppice.build_space(graph, round_to=10).family("stem").widths == (10, 16)
    assert coppice.build_space(graph, round_to=100).family("stem").widths == (16,)


@pytest.mark.parametrize("round_to", [2, 3, 4, 6])
def test_round_to_counts_channels_not_heads(round_to: int) -> None:
    space = coppice.build_space(coppice.trace(Heads(), torch.randn(2, 5, 6)), round_to=round_to)
    for seed in range(6):
        sizes = coppice.extract(space, space.random(seed)).graph.tensors["v.weight"].shape[0]
        assert sizes % round_to == 0


@pytest.mark.parametrize(
    ("bound", "expected"),
    [(4, (4, 16)), (0.5, (8, 16)), ((4, 8), (4, 8)), ((0.25, 0.75), (4, 12)), ((1, 16), (1, 16)), (1.0, (16, 16))],
    ids=str,
)
def test_bounds_limit_widths(graph: Graph, bound: Any, expected: tuple[int, int]) -> None:
    space = coppice.build_space(graph, bounds={"stem": bound})
    widths = space.family("stem").widths
    assert (widths[0], widths[-1]) == expected
    assert space.family("hidden").widths == tuple(range(1, 33))
    for seed in range(4):
        assert expected[0] <= len(space.random(seed)["stem"]) <= expected[1]
    assert len(space.uniform(0.01)["stem"]) == expected[0]


def test_bounds_and_round_to_together(graph: Graph) -> None:
    assert coppice.build_space(graph, round_to=4, bounds={"stem": (6, 13)}).family("stem").widths == (8, 12, 13)


@pytest.mark.parametrize("bounds", [{"stam": 4}, {"stem": 0}, {"stem": 17}, {"stem": 1.5}, {"stem": (8, 4)}], ids=str)
def test_bounds_that_cannot_be_are_refused(graph: Graph, bounds: Any) -> None:
    with pytest.raises(UsageError):
        coppice.build_space(graph, bounds=bounds)


# ---- configs ---------------------------------------------------------------------------------------------------------


def test_a_seed_names_one_config(graph: Graph, space: Space) -> None:
    again = coppice.build_space(graph)
    assert space.random(3) == space.random(3) == again.random(3)
    assert len({space.random(seed) for seed in range(20)}) == 20
    for seed in range(20):
        config = space.random(seed)
        for family in space.families:
            assert len(config[family.name]) in family.widths
            assert list(config[family.name]) == sorted(set(config[family.name]))


def test_random_configs_reach_every_width_and_unit(space: Space) -> None:
    seen = [space.random(seed)["stem"] for seed in range(200)]
    assert {len(units) for units in seen} == set(space.family("stem").widths)
    assert {unit for units in seen if len(units) < 8 for unit in units} == set(range(16))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_uniform_keeps_the_units_with_the_largest_weights(space: Space, ratio: float) -> None:
    config, scores = space.uniform(ratio), space.magnitudes()
    for family in space.families:
        kept = config[family.name]
        assert len(kept) == ratio * family.size
        left = np.delete(scores[family.name], kept)
        assert not len(left) or scores[family.name][list(kept)].min() >= left.max()
    assert space.uniform(1.0) == space.full()


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.01, float("nan")])
def test_uniform_refuses_what_is_no_fraction(space: Space, ratio: float) -> None:
    with pytest.raises(UsageError):
        space.uniform(ratio)


def test_widths_are_filled_in_a_given_order(space: Space) -> None:
    order = {f.name: np.arange(f.size, dtype=float) for f in space.families}
    config = space.with_widths({"stem": 3}, order)
    assert config["stem"] == (13, 14, 15)
    assert len(config["hidden"]) == 32
    assert space.with_widths({"stem": 2}, {name: np.zeros_like(s) for name, s in order.items()})["stem"] == (0, 1)


def test_configs_survive_json(space: Space) -> None:
    config = space.random(5)
    assert Config.from_json(config.to_json()) == config
    assert Config.of({"stem": [3, 1, 1]})["stem"] == (1, 3)


def test_masks_of_a_config(space: Space) -> None:
    config = Config.of({"stem": range(12), "stage.0": range(24), "hidden": range(32)})
    keep, zero = space.keep_masks(config), space.zero_masks(config)
    gone = np.arange(16) >= 12
    for mask, expected in (
        (keep["stem.weight"][0], ~gone),
        (zero["stem.weight"][0], gone),
        (zero["stem.bias"][0], gone),
    ):
        assert mask is not None
        assert (mask == expected).all()
    assert zero["stage.0.weight"] == (None, None, None, None), "the reader is cut, not zeroed"
    reader = keep["stage.0.weight"][1]
    assert reader is not None
    assert (reader == ~gone).all()
    assert all(mask is None for axes in space.zero_masks(space.full()).values() for mask in axes)
