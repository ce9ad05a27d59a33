"""Latency as a cost: what was measured is what the full model costs, parts go with their work, budgets meet it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import coppice
from coppice import BudgetError, Space, UnsupportedError, UsageError, build_space, prune, trace
from coppice.passes.space import latency
from zoo import MODELS


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Space:
    """A residual network whose calls take one microsecond each and one more per thousand numbers that they give."""

    def times(graph: coppice.Graph, repetitions: int) -> dict[torch.fx.Node, float]:
        nodes = [n for n in graph.nodes if n.op == "call_function"]
        return {n: 1e-6 + 1e-9 * int(np.prod(n.meta["value"].shape)) for n in nodes}

    monkeypatch.setattr(latency, "_times", times)
    monkeypatch.setattr(latency, "_fixed", lambda repetitions: 1e-6)
    return latency.with_latency(space_of("resnet20"))


def space_of(name: str) -> Space:
    return build_space(trace(MODELS[name].build(), MODELS[name].args(2)[0]))


def test_the_full_model_costs_what_was_measured(space: Space) -> None:
    calls = [n for n in space.graph.nodes if n.op == "call_function"]
    expected = sum(1e-6 + 1e-9 * int(np.prod(n.meta["value"].shape)) for n in calls)
    assert space.cost(space.full())["latency"][0] == pytest.approx(expected)


def test_work_goes_and_calls_stay(space: Space) -> None:
    """A block's inner width halves: its first convolution gives half, its second reads half; calls cost the same."""
    plain = space_of("resnet20")
    narrow = space.with_widths({"layer1.0.conv1": 8})
    saved = space.cost(space.full())["latency"][0] - space.cost(narrow)["latency"][0]
    numbers = 2 * 16 * 32 * 32  # of each of conv1, bn1, relu and conv2
    assert saved == pytest.approx(4 * 1e-9 * numbers / 2)
    for metric, values in plain.cost(narrow).items():
        assert values[0] == space.cost(narrow)[metric][0]


def test_an_erased_call_takes_no_time(space: Space) -> None:
    gone = space.erase("layer1.1")
    saved = space.cost(space.full())["latency"][0] - space.cost(gone)["latency"][0]
    numbers = 2 * 16 * 32 * 32
    assert saved == pytest.approx(5 * (1e-6 + 1e-9 * numbers)), "two convolutions, two norms, a relu; not the sum"


@pytest.mark.parametrize("budget", ["70%", "400us", "0.4ms", 4e-4])
def test_budgets_in_latency_are_met(space: Space, budget: str | float) -> None:
    config = prune(space, {"latency": budget})
    full = space.cost(space.full())["latency"][0]
    limit = 0.7 * full if budget == "70%" else 4e-4
    assert 0.97 * limit < space.cost(config)["latency"][0] <= limit * (1 + 1e-12)


def test_what_no_width_can_save_is_out_of_reach(space: Space) -> None:
    with pytest.raises(BudgetError, match="latency cannot go down to"):
        prune(space, {"latency": "50us"})


def test_a_real_measurement() -> None:
    space = coppice.with_latency(space_of("digits"), repetitions=3)
    full, half = (space.cost(config)["latency"][0] for config in (space.full(), space.uniform(0.5)))
    assert 0 < half < full < 1


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="has no latencies"):
        prune(space_of("digits"), {"latency": "50%"})
    with pytest.raises(UsageError, match="repetitions=0"):
        coppice.with_latency(space_of("digits"), repetitions=0)
    with torch.device("meta"):
        model = MODELS["digits"].build()
        space = build_space(trace(model, torch.randn(2, 1, 8, 8)))
    with pytest.raises(UnsupportedError, match="measured on the CPU"):
        coppice.with_latency(space)
