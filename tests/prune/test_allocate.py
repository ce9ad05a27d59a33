"""The allocator: the budget is met in cost space, from below, and not one unit more leaves than it asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coppice import BudgetError, Config, Space, UsageError, build_space, prune
from coppice.core.budget import Budget
from coppice.passes.prune.allocate import allocate
from prune.nets import costs, every_width, full, growable, least, limits, space_of, tiny_graph, traced

SMALL_UNITS = ["resnet20_pad", "densenet", "mobilenet_v2", "vit", "mixer", "digits"]
ANY = [*SMALL_UNITS, "bert", "resnext", "convnext", "espcn", "mlp_bn", "tiny"]

percentages = st.floats(5.0, 100.0).map(lambda p: f"{p!r}%")
budgets = st.dictionaries(st.sampled_from(["macs", "params", "bytes"]), percentages, min_size=1, max_size=3)


def affordable(space: Space, budget: dict[str, str]) -> bool:
    smallest = costs(space, least(space))
    return all(smallest[metric] <= limit for metric, limit in limits(space, budget).items())


@settings(max_examples=60)
@given(st.sampled_from(ANY), st.sampled_from([1, 1, 4]), budgets, st.integers(0, 999))
def test_any_budget_is_met_and_not_one_unit_more_leaves(
    name: str, round_to: int, budget: dict[str, str], seed: int
) -> None:
    space = space_of(name, round_to)
    assume(affordable(space, budget))
    config = prune(space, budget, "random", seed=seed)
    spent, most = costs(space, config), limits(space, budget)
    assert all(spent[metric] <= limit * (1 + 1e-12) for metric, limit in most.items())
    assert growable(space, config, most) == []
    assert all(len(config[f.name]) in f.widths for f in space.families)


@pytest.mark.parametrize("name", SMALL_UNITS)
@pytest.mark.parametrize("percent", [25, 40, 60, 80, 95])
def test_where_units_are_small_the_budget_is_used_to_within_one_per_cent(name: str, percent: int) -> None:
    space = space_of(name)
    limit = percent / 100 * full(space)["macs"]
    configs = [prune(space, {"macs": f"{percent}%"}, "random", seed=seed) for seed in range(4)]
    for config in (prune(space, {"macs": f"{percent}%"}), *configs):
        assert 0.99 * limit <= costs(space, config)["macs"] <= limit


def test_dear_units_are_traded_for_several_cheap_ones() -> None:
    """A head of this transformer costs 7 %: removing heads alone would leave 5 % of the budget unused."""
    space = space_of("bert")
    config = prune(space, {"macs": "91.5%"}, "random", seed=10)
    assert costs(space, config)["macs"] > 0.995 * 0.915 * full(space)["macs"]


def test_of_two_limits_the_one_that_binds_is_used_up() -> None:
    """The early stages hold many MACs and few parameters: filling up the parameters there would empty them."""
    space = space_of("convnext")
    config = prune(space, {"params": "66%", "macs": "60%"}, "random")
    assert costs(space, config)["macs"] > 0.995 * 0.60 * full(space)["macs"]
    assert len(config["stages.0.0.pwconv1"]) >= 0.1 * space.family("stages.0.0.pwconv1").size


# ---- against trying everything -------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["macs", "params"])
@pytest.mark.parametrize("share", [0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_trying_everything_finds_nothing_much_better(metric: str, share: float) -> None:
    space = space_of("tiny")
    widths = every_width(space)
    cost = space.cost(widths)[metric]
    limit = share * cost.max()
    fits = cost <= limit
    for seed in range(10):
        scores = {f.name: np.random.default_rng([seed, k]).random(f.size) for k, f in enumerate(space.families)}
        config = prune(space, {metric: limit}, scores)
        chosen = np.array([len(config[f.name]) for f in space.families], np.int64)
        dearest = space.costs.marginal(chosen, metric).max()
        assert cost[fits].max() - dearest < costs(space, config)[metric] <= limit
        best = [np.concatenate([[0], np.cumsum(np.sort(scores[f.name])[::-1])]) for f in space.families]
        kept = np.sum([own[widths[:, k]] for k, own in enumerate(best)], axis=0)
        ours = np.sum([own[chosen[k]] for k, own in enumerate(best)])
        assert ours >= 0.9 * kept[fits].max()


# ---- which units ---------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.sampled_from(["digits", "vit", "resnext"]), st.floats(0.3, 0.95), st.integers(0, 999))
def test_of_one_family_the_units_with_the_highest_scores_stay(name: str, share: float, seed: int) -> None:
    space = space_of(name)
    rng = np.random.default_rng(seed)
    scores = {f.name: rng.normal(size=f.size) for f in space.families}
    config = prune(space, {"macs": share}, scores)
    for family in space.families:
        own = scores[family.name]
        gone = np.setdiff1d(np.arange(family.size), config[family.name])
        assert own[list(config[family.name])].min() >= own[gone].max(initial=-np.inf)


@pytest.mark.parametrize("name", ["first", "second", "hidden"])
def test_a_family_that_matters_more_keeps_more(name: str) -> None:
    space = space_of("tiny")
    flat = {f.name: np.ones(f.size) for f in space.families}

    def kept(factor: float) -> int:
        return len(prune(space, {"macs": 0.5}, {**flat, name: factor * flat[name]})[name])

    assert kept(0.01) < kept(100.0)
    assert kept(0.01) <= kept(1.0) <= kept(100.0)


def test_flat_scores_thin_every_layer_and_empty_none() -> None:
    space = space_of("resnet20_pad")
    config = prune(space, {"macs": 0.5}, {f.name: np.ones(f.size) for f in space.families})
    assert min(len(config[f.name]) / f.size for f in space.families) >= 0.25


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e300, -1e300])
def test_any_finite_scores_do(value: float) -> None:
    space = space_of("digits")
    config = prune(space, {"macs": 0.4}, {f.name: np.full(f.size, value) for f in space.families})
    assert growable(space, config, {"macs": 0.4 * full(space)["macs"]}) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_names_its_family(value: float) -> None:
    space = space_of("digits")
    scores = {f.name: np.ones(f.size) for f in space.families}
    scores["block2.conv2"][3] = value
    with pytest.raises(UsageError, match=r"block2\.conv2.*NaN or infinite"):
        prune(space, {"macs": 0.4}, scores)


def test_the_same_call_gives_the_same_config() -> None:
    space = space_of("densenet")
    assert prune(space, {"macs": 0.4}, "random", seed=3) == prune(space, {"macs": 0.4}, "random", seed=3)
    assert prune(space, {"macs": 0.4}, "random", seed=3) != prune(space, {"macs": 0.4}, "random", seed=4)


@pytest.mark.parametrize("budget", [{"macs": "100%"}, {"macs": "10G", "params": "100%"}])
def test_a_budget_that_is_large_enough_removes_nothing(budget: dict[str, str]) -> None:
    space = space_of("digits")
    assert prune(space, budget) == space.full()


# ---- constraints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_to", [2, 4, 8])
def test_widths_are_multiples_or_whole(round_to: int) -> None:
    space = space_of("mobilenet_v2", round_to)
    config = prune(space, {"macs": "55%"})
    for family in space.families:
        assert len(config[family.name]) % round_to == 0 or len(config[family.name]) == family.size


BOUNDS: dict[str, Any] = {"stem": 12, "block1.conv1": (4, 6), "block2.conv2": (0.5, 0.75), "block3.conv1": 0.9}


@pytest.mark.parametrize("share", [0.35, 0.5, 0.7, 0.9, 1.0])
def test_bounds_hold_at_both_ends(share: float) -> None:
    space = build_space(traced("digits"), bounds=BOUNDS)
    kept = prune(space, {"macs": "100%" if share == 1 else share}).widths()
    assert 12 <= kept["stem"] <= 16
    assert 4 <= kept["block1.conv1"] <= 6
    assert 16 <= kept["block2.conv2"] <= 24
    assert 29 <= kept["block3.conv1"] <= 32


def test_bounds_too_high_for_the_budget_are_named_in_the_error() -> None:
    space = build_space(traced("digits"), bounds={f.name: 0.8 for f in space_of("digits").families})
    with pytest.raises(BudgetError) as caught:
        prune(space, {"macs": "30%"})
    assert "bounds" in caught.value.remedy
    assert prune(space, {"macs": caught.value.closest["macs"]}) == least(space)


@settings(max_examples=30)
@given(st.sampled_from(["digits", "densenet", "resnext", "tiny"]), st.sampled_from([1, 4]), st.integers(0, 999))
def test_a_choice_in_turns_shrinks_and_keeps_to_what_is_left(name: str, round_to: int, seed: int) -> None:
    """Each turn has new scores for what is left; units that have left score lowest and do not come back."""
    space, rng = space_of(name, round_to), np.random.default_rng(seed)
    config = space.full()
    for share in (0.8, 0.6, 0.45):
        before, scores = config, {f.name: rng.random(f.size) for f in space.families}
        for family in space.families:
            scores[family.name][np.delete(np.arange(family.size), list(before[family.name]))] = -1.0
        limit = share * full(space)["macs"]
        assume(costs(space, least(space))["macs"] <= limit)
        config = allocate(space, scores, Budget((("macs", limit),)), before.widths())
        assert costs(space, config)["macs"] <= limit * (1 + 1e-12)
        assert all({*config[f.name]} <= {*before[f.name]} for f in space.families)
        assert all(len(config[f.name]) in f.widths for f in space.families)
        stuck = {f.name for f in space.families if len(config[f.name]) == len(before[f.name])}
        assert {text.split()[0] for text in growable(space, config, {"macs": limit})} <= stuck


def test_ignored_layers_keep_everything() -> None:
    space = build_space(traced("digits"), ignore=["block1.*", "stem"])
    config = prune(space, {"macs": "60%"})
    assert not any(name.startswith(("block1", "stem")) for name in config)


def test_a_model_without_families_meets_only_budgets_above_its_cost() -> None:
    space = build_space(tiny_graph(), ignore=["first", "second", "hidden"])
    assert prune(space, {"macs": "100%"}) == Config.of({})
    with pytest.raises(BudgetError, match="axes are frozen"):
        prune(space, {"macs": "99%"})
