"""`explain`: it covers every axis, says what the space says, and folds what repeats."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import coppice
from coppice.core.space import Space
from coppice.passes.analyze.explain import Explanation, compact
from zoo import MODELS, TRAPS

SOME = [
    "resnet20",
    "mobilenet_v3",
    "shufflenet_v2",
    "vit",
    "bert",
    "llama_tied",
    "densenet",
    "input_cat",
    "sigmoid",
    "lstm",
]


def space_of(name: str) -> Space:
    case = {**MODELS, **TRAPS}[name]
    args, kwargs = case.args(2)
    return coppice.build_space(coppice.trace(case.build(), kwargs or args))


@pytest.fixture(scope="module", params=SOME)
def explained(request: pytest.FixtureRequest) -> tuple[Space, Explanation]:
    space = space_of(request.param)
    return space, coppice.explain(space)


def test_every_axis_of_every_parameter_has_one_row(explained: tuple[Space, Explanation]) -> None:
    space, explanation = explained
    assert space.graph.model is not None
    wanted = [(name, k, size) for name, p in space.graph.model.named_parameters() for k, size in enumerate(p.shape)]
    assert sorted((row.tensor, row.axis, row.size) for row in explanation.axes) == sorted(wanted)


def test_the_rows_say_what_the_space_says(explained: tuple[Space, Explanation]) -> None:
    space, explanation = explained
    cuts: dict[tuple[str, int], set[str]] = {}
    for family in space.families:
        for cut in family.slices:
            cuts.setdefault((cut.tensor, cut.axis), set()).add(family.name)
    frozen = {(entry.axis, entry.size): entry for entry in space.frozen}
    for row in explanation.axes:
        assert set(row.families) == cuts.get((row.tensor, row.axis), set())
        assert bool(row.removable) == bool(row.families)
        entry = frozen.get((row.name, row.size))
        if entry is not None and row.tensor in space.tensor_axes and not row.plain:
            assert (row.reason, row.size - row.removable) == (entry.reason, entry.count)


def test_every_frozen_axis_has_a_reason_a_line_and_a_remedy(explained: tuple[Space, Explanation]) -> None:
    _, explanation = explained
    for row in explanation.axes:
        if row.removable < row.size:
            assert row.reason
            assert row.remedy
            assert re.fullmatch(r"[\w.]+\.py:\d+", row.source) or row.reason == "is not used by forward"
        else:
            assert not row.reason


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("softmax", "compare positions instead of units"),
        ("min", "reduce by a sum or a mean"),
        ("select_one", "by split, chunk or a slice"),
        ("neighbour_difference", "nothing: a layer keeps at least one unit"),
        ("vit", "nothing, where the axis counts positions"),
        ("espcn", "nothing: the channels that make the pixels"),
    ],
)
def test_remedies_are_those_of_the_op(name: str, part: str) -> None:
    space = space_of(name)
    assert all(entry.remedy for entry in space.frozen)
    assert any(part in entry.remedy for entry in space.frozen)
    rows = {row.name: row.remedy for row in coppice.explain(space).frozen()}
    assert all(rows[entry.axis] == entry.remedy for entry in space.frozen if "rewrite " not in entry.remedy)


def test_what_families_save_is_what_the_space_charges(explained: tuple[Space, Explanation]) -> None:
    space, explanation = explained
    assert [f.name for f in explanation.families] == [f.name for f in space.families]
    for family, row in zip(space.families, explanation.families, strict=True):
        small = space.cost(space.with_widths({family.name: family.widths[0]}))
        for metric, full in explanation.costs.items():
            assert row.saves[metric] == pytest.approx(1 - small[metric][0] / full)
    least = space.cost(space.with_widths({f.name: f.widths[0] for f in space.families}))
    assert explanation.least == {metric: values[0] for metric, values in least.items()}


def test_what_segments_save_is_what_the_space_charges() -> None:
    space = space_of("super_resnet")
    explanation = coppice.explain(space)
    assert [row.name for row in explanation.segments] == [segment.name for segment in space.segments]
    for row in explanation.segments:
        small = space.cost(space.erase(row.name))
        for metric, full in explanation.costs.items():
            assert row.saves[metric] == pytest.approx(1 - small[metric][0] / full)
    assert explanation.choices["cells.0"] == tuple(f"cells.0.operators.{k}" for k in range(4))
    assert "cells.{0-2}.operators.{0-3}" in explanation.summary()


def test_the_dictionary_is_json(explained: tuple[Space, Explanation]) -> None:
    data = json.loads(json.dumps(explained[1].to_dict()))
    keys = {"model", "axes", "families", "segments", "choices", "costs", "least", "tied", "notes"}
    assert set(data) == keys
    assert len(data["axes"]) == len(explained[1].axes)


def test_nothing_found_is_an_explanation() -> None:
    explanation = coppice.explain(space_of("sigmoid").graph)
    assert explanation.families == ()
    text = explanation.summary()
    assert "nothing can leave" in text
    assert "still contributes the constant 0.5" in text
    assert "remedy: keep zero at zero" in text
    assert explanation.least == explanation.costs


class Deep(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_a_deep_model_is_told_as_shortly_as_a_shallow_one() -> None:
    texts = {}
    for depth in (2, 12):
        explanation = coppice.explain(coppice.trace(Deep(depth), torch.randn(2, 8)))
        texts[depth] = explanation.summary().splitlines()
    assert len(texts[12]) == len(texts[2])
    assert "  layers.{0-11}.1: 16 units" in texts[12]
    assert len(explanation.summary(every=True).splitlines()) > 60


def test_a_partly_frozen_axis_says_how_much() -> None:
    text = coppice.explain(space_of("input_cat")).summary()
    assert "out.weight[in] (4 of 12)" in text


class Odd(nn.Module):
    """A parameter that forward does not use, one that is tied, one without dimensions, one of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.unused = nn.Parameter(torch.zeros(3, 5))
        self.scale = nn.Parameter(torch.ones(()))
        self.steps = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.relu(self.a(x))) * self.scale + self.steps


def test_unused_tied_and_odd_parameters() -> None:
    explanation = coppice.explain(coppice.trace(Odd(), torch.randn(2, 4)))
    unused = [row for row in explanation.axes if row.tensor == "unused"]
    assert [row.size for row in unused] == [3, 5]
    assert {row.reason for row in unused} == {"is not used by forward"}
    assert explanation.tied == {"b.weight": "a.weight"}
    (steps,) = (row for row in explanation.axes if row.tensor == "steps")
    assert steps.reason == "holds no floating point numbers"
    assert not any(row.tensor == "scale" for row in explanation.axes)


def test_a_changed_graph_makes_the_space_stale() -> None:
    space = space_of("mlp")
    relu = next(n for n in space.graph.nodes if "relu" in n.name)
    space.graph.replace(relu, relu.all_input_nodes[0])
    with pytest.raises(coppice.CoppiceError, match="this space was computed at version"):
        coppice.explain(space)


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(coppice.UsageError, match="expected a Graph or a Space, got Linear"):
        coppice.explain(nn.Linear(2, 2))  # type: ignore[arg-type]


# ---- folding -------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["a", "layer2", "7", "0", "1", "12", "b.0", "3x"])
NAMES = st.lists(st.lists(WORDS, min_size=1, max_size=4).map(".".join), unique=True, max_size=12)


def expanded(text: str) -> list[str]:
    parts = re.split(r"\{([\d,-]+)\}", text)
    choices: list[list[str]] = [[part] for part in parts]
    for k in range(1, len(parts), 2):
        choices[k] = []
        for run in parts[k].split(","):
            low, _, high = run.partition("-")
            choices[k] += [str(n) for n in range(int(low), int(high or low) + 1)]
    return ["".join(choice) for choice in product(*choices)]


@given(NAMES)
def test_folded_names_stand_for_exactly_the_names(names: list[str]) -> None:
    folded = compact(names)
    assert len(folded) <= len(names)
    assert sorted(name for text in folded for name in expanded(text)) == sorted(names)


def test_folding_by_example() -> None:
    names = [f"layers.{k}.{part}.weight[in]" for k in range(12) for part in ("fc1", "fc2")]
    assert compact(names) == ["layers.{0-11}.fc1.weight[in]", "layers.{0-11}.fc2.weight[in]"]
    assert compact(["a.0", "a.2", "a.3", "a.4"]) == ["a.{0,2-4}"]
    assert compact(["a.0.b.1", "a.1.b.0"]) == ["a.0.b.1", "a.1.b.0"]
    assert compact(["0.qkv#2", "1.qkv#2"]) == ["{0-1}.qkv#2"]
    assert compact(["layer1.x", "layer2.x"]) == ["layer1.x", "layer2.x"]
