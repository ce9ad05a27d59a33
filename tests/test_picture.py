"""The picture of a graph: self-contained, coloured by family, small for deep models, safe with any name."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import coppice
from coppice.core.errors import StaleFactError
from coppice.passes.analyze.layout import layout
from coppice.passes.analyze.picture import FROZEN, Picture, picture
from coppice.passes.analyze.svg import GREY, HUES, colours, svg
from zoo import MODELS, TRAPS

PITCH = 100.0


def explained(name: str) -> coppice.Explanation:
    case = {**MODELS, **TRAPS}[name]
    args, kwargs = case.args(2)
    return coppice.explain(coppice.trace(case.build(), kwargs or args))


def drawn(explanation: coppice.Explanation, most: int = 400) -> Picture:
    assert explanation.space is not None
    return picture(explanation.space, explanation, most)


def elements(text: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(text).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def boxes(text: str) -> list[ElementTree.Element]:
    return [e for e in elements(text, "rect") if (e.get("class") or "").startswith("box")]


@pytest.mark.parametrize("name", ["mlp", "resnet20", "bert", "llama_tied", "densenet", "shufflenet_v2", "sigmoid"])
def test_every_call_has_a_box_and_every_edge_leads_down(name: str) -> None:
    explanation = explained(name)
    assert explanation.space is not None
    shown, text = drawn(explanation), explanation.svg()
    assert len(boxes(text)) == len(shown.boxes)
    calls = sum(box.kind == "call_function" for box in shown.boxes)
    assert calls == shown.calls
    placed = layout(shown.edges, [box.kind == "placeholder" for box in shown.boxes], PITCH, 10.0)
    assert all(placed.layer[u] < placed.layer[v] for u, v in shown.edges)
    assert len(shown.edges) >= calls - 1
    for family in explanation.families:
        assert f"{family.name}: {family.size} units" in text
    used = {family for box in shown.boxes for family in box.shares}
    assert used - {FROZEN} == set(range(len(explanation.families)))


def test_a_picture_needs_nothing_from_elsewhere() -> None:
    text = explained("resnet20").svg()
    assert not re.search(r"<script|<image|<foreignObject|href|url\(|@import|\son\w+=", text)
    assert text.count("http") == 1  # the name of the format itself


def test_frozen_boxes_are_grey_and_say_why() -> None:
    text = explained("sigmoid").svg()
    assert [e for e in elements(text, "rect") if e.get("fill") == GREY]
    titles = [e.text or "" for e in elements(text, "title")]
    assert any("still contributes the constant 0.5" in t and "remedy: keep zero at zero" in t for t in titles)
    assert any(re.search(r"^conv\w* \(\w+\.py:\d+\)", t) and "shape N×" in t for t in titles)


def test_widths_that_can_be_cut_are_bold() -> None:
    text = explained("mlp").svg()
    bold = [e.text for e in elements(text, "tspan")]
    assert bold[:3] == ["128", "128", "96"]  # weight[out], bias and the next weight[out] of 128-96-64, never an input
    assert 'weight <tspan class="cut">128</tspan>×32' in text


class Named(nn.Module):
    """A module whose parts have names that a picture must not take for markup."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(4, 6))
        self.register_parameter(f"{name}p", nn.Parameter(torch.ones(6)))
        self.name, self.out = name, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.out(torch.relu(self.get_submodule(self.name)(x)) * self.get_parameter(f"{self.name}p"))


@pytest.mark.parametrize(
    "name", ["</text><script>alert(1)</script>", "\"'&amp;<![CDATA[", "x\x01\x0b", "--><svg onload=1>"]
)
def test_names_are_never_markup(name: str) -> None:
    explanation = coppice.explain(coppice.trace(Named(name), torch.randn(2, 4), name=name))
    text = explanation.svg()
    plain = explained("mlp").svg()
    tags = set(re.findall(r"<(/?\w+)", plain)) | {"line", "/line"}
    assert set(re.findall(r"<(/?\w+)", text)) <= tags
    assert len(boxes(text)) == len(drawn(explanation).boxes)
    assert explanation.families


class Deep(nn.Module):
    def __init__(self, depth: int, nested: bool) -> None:
        super().__init__()
        self.nested = nested
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            parts = list(layer.children())
            x = x + (layer(x) if self.nested else parts[2](parts[1](parts[0](x))))
        return x


def test_deep_models_are_drawn_by_module() -> None:
    explanation = coppice.explain(coppice.trace(Deep(30, nested=True), torch.randn(2, 4)))
    assert explanation.space is not None
    assert len(drawn(explanation).boxes) == 30 * 4 + 2
    few = drawn(explanation, 80)
    assert [box.title for box in few.boxes if box.kind == "module"] == [f"layers.{k}" for k in range(30)]
    assert len(few.boxes) == 30 * 2 + 2  # the additions ran in the model itself
    joined = drawn(explanation, 20)
    assert 10 <= len(joined.boxes) <= 20
    assert sum(box.calls for box in joined.boxes if box.kind == "module") == 120
    for shown in (few, joined):
        assert all(u < v for u, v in shown.edges)
        assert {v for _, v in shown.edges} == set(range(1, len(shown.boxes)))
    text = svg(explanation.space, explanation, 20)
    assert "120 calls are too many to draw" in text
    assert len(boxes(text)) == len(joined.boxes)
    assert "too many" not in explanation.svg()


def test_a_flat_model_without_modules_is_drawn_too() -> None:
    explanation = coppice.explain(coppice.trace(Deep(30, nested=False), torch.randn(2, 4)))
    shown = drawn(explanation, 30)
    assert len(shown.boxes) <= 30
    assert sum(box.calls for box in shown.boxes if box.kind != "placeholder") == 121


def test_a_changed_graph_makes_the_picture_stale() -> None:
    explanation = explained("mlp")
    assert explanation.space is not None
    graph = explanation.space.graph
    relu = next(n for n in graph.nodes if "relu" in n.name)
    graph.replace(relu, relu.all_input_nodes[0])
    with pytest.raises(StaleFactError):
        explanation.svg()


# ---- colours -------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@given(st.lists(st.text(max_size=6), unique=True, min_size=1, max_size=60))
def test_colours_differ_and_bear_black_text(names: list[str]) -> None:
    fills = [fill for fill, _ in colours(names)]
    assert fills == [fill for fill, _ in colours(names)]
    assert len(set(fills)) == len(names)
    assert all((luminance(fill) + 0.05) / (luminance("#111111") + 0.05) >= 4.5 for fill in fills)  # WCAG 2.1, AA


def test_a_family_keeps_the_hue_of_its_name() -> None:
    alone = colours(["layer1.conv1"])[0]
    assert colours(["layer1.conv1", "layer9.conv"])[0] == alone
    assert len({line for _, line in colours([f"layer{k}" for k in range(HUES)])}) == HUES


# ---- layout --------------------------------------------------------------------------------------------------------

GRAPHS = st.integers(1, 24).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] < e[1]), unique=True),
    )
)


@given(GRAPHS)
def test_layouts_keep_boxes_apart_and_lanes_clear(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = case
    placed = layout(edges, [k == 0 for k in range(count)], PITCH, 10.0)
    assert sorted(v for row in placed.rows for v in row) == list(range(count))
    assert placed.layer[0] == 0
    for u, v in edges:
        assert placed.layer[u] < placed.layer[v]
        if placed.layer[v] - placed.layer[u] > 1:
            passed = [w for k in range(placed.layer[u] + 1, placed.layer[v]) for w in placed.rows[k]]
            assert all(placed.lanes[u] >= placed.x[w] + PITCH / 2 for w in passed)
    for row in placed.rows:
        assert all(placed.x[b] - placed.x[a] >= PITCH - 1e-6 for a, b in pairwise(row))
    assert min(placed.x) >= -1e-6


def test_a_chain_is_straight_and_a_fork_is_even() -> None:
    chain = layout([(0, 1), (1, 2), (0, 3), (2, 3)], [True, False, False, False], PITCH, 10.0)
    assert len(set(chain.x)) == 1
    assert set(chain.lanes) == {0}
    fork = layout([(0, 1), (0, 2), (1, 3), (2, 3)], [True, False, False, False], PITCH, 10.0)
    assert fork.x[0] == pytest.approx((fork.x[1] + fork.x[2]) / 2)
    assert fork.x[3] == pytest.approx(fork.x[0])
