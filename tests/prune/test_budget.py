"""What a budget may look like, what it means, and what is said of one out of reach."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppice import BudgetError, UsageError, build_space, extract
from coppice.core.budget import Budget, resolve
from coppice.core.cost import METRICS
from prune.nets import costs, every_width, full, least, space_of, tiny_graph, traced

FACTORS = {
    "": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1, "KB": 1e3, "kB": 1e3, "MB": 1e6, "GB": 1e9,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip


def limit(amount: Any, metric: str = "macs", name: str = "digits") -> float:
    ((_, found),) = resolve({metric: amount}, space_of(name)).limits
    return found


@pytest.mark.parametrize(
    ("amount", "macs"),
    [
        ("50%", 414_368),
        ("50.0 %", 414_368),
        (" 50% ", 414_368),
        ("100%", 828_736),
        (0.5, 414_368),
        (np.float64(0.5), 414_368),
        (1.0, 828_736),  # one MAC is no budget anybody asks for
        (414_368, 414_368),
        (414_368.0, 414_368),
        ("414368", 414_368),
        ("414.368k", 414_368),
        ("0.414368 M", 414_368),
        (".414368M", 414_368),
        ("4.14368e5", 414_368),
        ("4.14368e-4G", 414_368),
        ("400KiB", 409_600),
        ("10G", 10_000_000_000),
    ],
)
def test_the_forms_of_one_amount(amount: Any, macs: float) -> None:
    assert limit(amount) == pytest.approx(macs, rel=1e-12)


@given(st.sampled_from(METRICS), st.sampled_from(sorted(FACTORS)), st.floats(0.05, 50.0))
def test_a_suffix_multiplies(metric: str, suffix: str, share: float) -> None:
    amount = share * full(space_of("digits"))[metric]
    assert limit(f"{amount / FACTORS[suffix]!r}{suffix}", metric) == pytest.approx(amount, rel=1e-12)


@given(st.sampled_from(METRICS), st.floats(5.0, 100.0))
def test_a_percentage_and_a_fraction_are_of_the_full_model(metric: str, percent: float) -> None:
    expected = percent / 100 * full(space_of("digits"))[metric]
    assert limit(f"{percent!r}%", metric) == pytest.approx(expected, rel=1e-12)
    if percent < 100:
        assert limit(percent / 100, metric) == pytest.approx(expected, rel=1e-12)


@given(st.text(max_size=8))
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    with suppress(UsageError, BudgetError):
        assert limit(text) > 0


@pytest.mark.parametrize(
    "amount",
    [
        "", " ", "%", "abc", "half", "50 percent", "-5%", "+5%", "0%", "0.0%", "100.1%", "5%%", "1.2X", "1,200",
        "1_200", "5.", "1 2", "0", "0k", "1e999", "nan", "inf", "٥٠%", "50％", True, False, None, [50], b"50%",
        0, 0.0, -1, -0.5, float("nan"), float("inf"), float("-inf"),
    ],
)  # fmt: skip
def test_what_is_no_amount_is_refused_by_name(amount: Any) -> None:
    with pytest.raises(UsageError) as caught:
        limit(amount)
    assert "macs" in caught.value.place
    assert "50%" in caught.value.remedy


@pytest.mark.parametrize("budget", ["50%", 0.5, None, {}, [("macs", "50%")]])
def test_what_is_no_budget_is_refused(budget: Any) -> None:
    with pytest.raises(UsageError, match="no budget"):
        resolve(budget, space_of("digits"))


@pytest.mark.parametrize(("name", "meant"), [("mac", "macs"), ("parameters", "params"), ("MACs", "macs")])
def test_an_unknown_metric_suggests_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        resolve({name: "50%"}, space_of("digits"))
    assert meant in caught.value.remedy


def test_every_limit_must_be_met() -> None:
    budget = Budget((("macs", 100.0), ("params", 10.0)))
    assert budget.met({"macs": 100.0, "params": 10.0, "bytes": 1e9})
    assert not budget.met({"macs": 100.1, "params": 10.0})
    assert not budget.met({"macs": 1.0, "params": 10.1})


# ---- out of reach --------------------------------------------------------------------------------------------------


def out_of_reach(space: Any, metric: str) -> float:
    with pytest.raises(BudgetError) as caught:
        resolve({metric: 1}, space)
    assert caught.value.exit_code == 4
    assert set(caught.value.closest) == {metric}
    return caught.value.closest[metric]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["digits", "densenet", "vit", "resnext"])
def test_the_closest_cost_is_that_of_a_config_and_a_hair_less_is_refused(name: str, metric: str) -> None:
    space = space_of(name)
    closest = out_of_reach(space, metric)
    assert closest == costs(space, least(space))[metric]
    ((_, found),) = resolve({metric: closest}, space).limits
    assert found == closest
    with pytest.raises(BudgetError):
        resolve({metric: closest * (1 - 1e-9)}, space)


@pytest.mark.parametrize("name", ["digits", "mlp_bn", "vit"])
def test_the_closest_cost_is_that_of_a_real_subnet(name: str) -> None:
    space = space_of(name)
    subnet = extract(space, least(space))
    assert out_of_reach(space, "params") == sum(p.numel() for p in subnet.module.parameters())
    stored = subnet.tensors().values()
    assert out_of_reach(space, "bytes") == sum(t.numel() * t.element_size() for t in stored)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "options",
    [{}, {"round_to": 4}, {"bounds": {"first": 3, "hidden": (0.5, 9)}}, {"ignore": "second"}],
    ids=lambda o: next(iter(o), "plain"),
)
def test_nothing_in_the_space_is_smaller_than_the_closest_cost(metric: str, options: dict[str, Any]) -> None:
    space = build_space(tiny_graph(), **options)
    assert out_of_reach(space, metric) == space.cost(every_width(space))[metric].min()


@settings(max_examples=50)
@given(st.sampled_from(["resnet20_pad", "resnext", "bert", "mobilenet_v2"]), st.integers(0, 10_000))
def test_no_random_config_is_smaller_than_the_closest_cost(name: str, seed: int) -> None:
    space = space_of(name)
    found, smallest = costs(space, space.random(seed)), costs(space, least(space))
    assert all(found[metric] >= smallest[metric] for metric in METRICS)


def test_the_error_gives_fact_place_and_remedy() -> None:
    space = build_space(traced("digits"), ignore=["block2.*", "block3.*"])
    with pytest.raises(BudgetError) as caught:
        resolve({"macs": "20%"}, space)
    share = 100 * caught.value.closest["macs"] / full(space)["macs"]
    assert f"{share:.1f}% of the full model" in caught.value.fact
    assert caught.value.place == "budget macs=20%"
    assert "ignore fewer" in caught.value.remedy


def test_of_two_limits_one_may_be_out_of_reach() -> None:
    with pytest.raises(BudgetError) as caught:
        resolve({"macs": "50%", "params": "0.01%"}, space_of("vit"))
    assert caught.value.place == "budget params=0.01%"
    assert caught.value.closest == {m: costs(space_of("vit"), least(space_of("vit")))[m] for m in ("macs", "params")}
