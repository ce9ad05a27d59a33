"""Conditions, loops and maps over subgraphs, modes and transforms, writes in place: traced, and never cut wrongly."""

# mypy: disable-error-code="no-any-return, no-untyped-call, no-untyped-def, attr-defined"
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.utils.checkpoint import checkpoint

import coppice
from coppice import Space
from coppice.core.errors import UnsupportedError
from coppice.core.higher import HigherOrder
from coppice.core.text import to_text
from coppice.passes.extract.check import compare, difference
from zoo.case import randomise

Body = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """first -> ``body`` (which may use ``inner``) -> middle -> relu -> last."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(6, 8), nn.Linear(8, 8)
        self.middle, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(self.body(self, self.first(x)))))


class Uncopyable(Net):
    """Gives way to the graph module."""

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise TypeError("holds a lock")


def space_of(body: Body, kind: type[Net] = Net) -> Space:
    torch.manual_seed(0)
    model = kind(body)
    randomise(model)
    return coppice.build_space(coppice.trace(model.eval(), torch.randn(4, 6)))


def choose(m: Net, h: Tensor) -> Tensor:
    return torch.cond(h.sum() > 0, lambda h: torch.relu(m.inner(h)), lambda h: m.inner(h) * 2, (h,))


def nested(m: Net, h: Tensor) -> Tensor:
    def deep(h: Tensor) -> Tensor:
        return torch.cond(h.amax() > 1, torch.relu, torch.tanh, (h,))

    return torch.cond(h.sum() > 0, deep, lambda h: h + torch.ones(8, dtype=torch.float32), (h,))


def repeat(m: Net, h: Tensor) -> Tensor:
    return while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, torch.tanh(m.inner(h))), (torch.tensor(0), h))[1]


def rows(m: Net, h: Tensor) -> Tensor:
    def one(row: Tensor) -> Tensor:
        return torch.relu(m.inner(row))

    return map_rows(one, h)  # type: ignore[arg-type]


def running(m: Net, h: Tensor) -> Tensor:
    return scan(lambda c, r: (torch.tanh(c + r), torch.tanh(c * r)), torch.zeros(8), h, dim=0)[1]


BODIES: dict[str, tuple[Body, str]] = {
    "cond": (choose, "passes through `cond`, which chooses between subgraphs"),
    "nested cond": (nested, "passes through `cond`, which chooses between subgraphs"),
    "map": (rows, "passes through `map_impl`, which runs a subgraph for every"),
    "scan": (running, "passes through `scan`, which runs a subgraph step by step"),
    "while": (repeat, "passes through `while_loop`, which repeats a subgraph"),
}


@pytest.mark.parametrize("kind", [Net, Uncopyable])
@pytest.mark.parametrize("name", BODIES)
def test_what_passes_through_a_subgraph_stays_and_the_rest_is_cut(name: str, kind: type[Net]) -> None:
    body, reason = BODIES[name]
    space = space_of(body, kind)
    assert [(f.name, f.size) for f in space.families] == [("middle", 6)]
    held = {entry.axis: entry for entry in space.frozen}
    for axis in ("first.weight[out]", "middle.weight[in]"):
        assert held[axis].reason.startswith(reason)
    assert held["first.weight[out]"].remedy
    subnet = coppice.extract(space, space.uniform(0.5))
    assert subnet.receipt["equivalence"]["error"] <= 1e-9
    assert subnet.receipt["module"]["kind"] == ("user" if kind is Net else "graph")
    for sign in (-1, 1):
        for batch in (1, 5):
            x = torch.randn(batch, 6).abs() * sign
            with torch.no_grad():
                assert difference(subnet.reference()(x), subnet.module(x)) < 1e-5


def test_the_check_runs_subgraphs_in_fp64() -> None:
    """``torch.ones(dtype=float32)`` inside a branch is widened with everything else."""
    space = space_of(nested)
    config = space.uniform(0.5)
    subnet = coppice.extract(space, config)
    found = compare(space.graph, space.masked_tensors(config), subnet.graph)
    assert found.dtype == "float64"
    assert found.error <= 1e-12
    target = next(n.target for n in subnet.graph.nodes if isinstance(n.target, HigherOrder))
    inner = [n for g in target.graphs.values() for n in g.graph.nodes if n.kwargs.get("dtype") is torch.float32]
    assert inner, "the graph itself is as it was"


def test_a_wrong_cut_beside_a_subgraph_is_still_noticed() -> None:
    space = space_of(choose)
    config = space.uniform(0.5)
    subnet = coppice.extract(space, config)
    masked = space.masked_tensors(config)
    masked["inner.weight"] = nn.Parameter(masked["inner.weight"] * 1.5)
    assert compare(space.graph, masked, subnet.graph).error > 1e-3


def test_such_a_graph_is_printed_and_explained_but_not_saved(tmp_path: Path) -> None:
    space = space_of(choose)
    assert "higher_order.cond(gt, 'true_graph_0', 'false_graph_0', (" in to_text(space.graph)
    assert "chooses between subgraphs" in str(coppice.explain(space).axes)
    subnet = coppice.extract(space, space.uniform(0.5))
    with pytest.raises(UnsupportedError, match=r"higher_order.cond` runs graphs of its own, which graph.json cannot"):
        subnet.save(tmp_path / "subnet")
    assert not (tmp_path / "subnet").exists()


@pytest.mark.parametrize("body", [choose, repeat])
def test_such_a_graph_is_trained_and_exported(body: Body, tmp_path: Path) -> None:
    space = space_of(body, Uncopyable)
    subnet = coppice.extract(space, space.uniform(0.5))
    subnet.module(torch.randn(4, 6)).sum().backward()
    assert all(p.grad is not None for p in subnet.module.parameters())
    subnet.export_onnx(tmp_path / "model.onnx")
    assert subnet.receipt["onnx"]["checked"]["error"] < 1e-5


def test_flexible_attention_is_held() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out, self.last = nn.Linear(16, 48), nn.Linear(16, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            from torch.nn.attention.flex_attention import flex_attention

            q, k, v = self.qkv(x).view(2, 16, 3, 2, 8).permute(2, 0, 3, 1, 4)
            mixed = flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + (i - j))
            assert isinstance(mixed, Tensor)
            return self.last(torch.relu(self.out(mixed.transpose(1, 2).flatten(2))))

    model = Attention()
    randomise(model)
    space = coppice.build_space(coppice.trace(model.eval(), torch.randn(2, 16, 16), dynamic=False))
    assert [f.name for f in space.families] == ["out"]
    assert coppice.extract(space, space.uniform(0.5)).receipt["equivalence"]["error"] <= 1e-9


# ---- modes and transforms ------------------------------------------------------------------------------------------


class Clamp(torch.autograd.Function):
    """A ReLU with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def with_gradients(m: Net, h: Tensor) -> Tensor:
    with torch.enable_grad():
        return torch.relu(m.inner(torch.relu(h)))


def written(m: Net, h: Tensor) -> Tensor:
    out = torch.relu(h).clone()
    out.view(-1, 2, 4).mul_(2)
    return out.relu_()


PLAIN: dict[str, tuple[Body, set[str]]] = {
    "checkpoint": (
        lambda m, h: checkpoint(lambda h: torch.relu(m.inner(torch.relu(h))), h, use_reentrant=False),
        {"first", "inner", "middle"},
    ),
    "gradient mode": (with_gradients, {"first", "inner", "middle"}),
    "vmap": (
        lambda m, h: torch.vmap(lambda row: torch.relu(m.inner(torch.relu(row))))(h),
        {"first", "inner", "middle"},
    ),
    "autograd function": (lambda m, h: Clamp.apply(h), {"first", "middle"}),
    "in place through a view": (written, {"first", "middle"}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_changes_no_values_does_not_stand_in_the_way(name: str, tmp_path: Path) -> None:
    body, families = PLAIN[name]
    space = space_of(body)
    assert {f.name for f in space.families} >= families - {"first"}
    if name != "in place through a view":  # the view may cut the units into a grid
        assert {f.name for f in space.families} == families
    x = torch.randn(5, 6)
    with torch.no_grad():
        assert space.graph.model is not None
        assert difference(space.graph.model(x), space.graph.run(x)) < 1e-6
    subnet = coppice.extract(space, space.uniform(0.5))
    assert subnet.receipt["equivalence"]["error"] <= 1e-9
    loaded = coppice.load(subnet.save(tmp_path / "subnet"))
    with torch.no_grad():
        assert difference(subnet.module(x), loaded.module(x)) < 1e-6


def overwritten(m: Net, h: Tensor) -> Tensor:
    h[:, 2:4] = 1.0
    h[:, :1].add_(h[:, 5:6])
    return torch.relu(h)


def filled(m: Net, h: Tensor) -> Tensor:
    out = torch.empty(len(h), 16)
    out[:, :8] = h
    out[:, 8:] = torch.relu(h)
    return out[:, 4:12]


def picked(m: Net, h: Tensor) -> Tensor:
    h[h > 1] = 0
    return h.index_add(1, torch.tensor([0, 3]), h[:, :2])


@pytest.mark.parametrize("body", [overwritten, filled, picked])
def test_writes_in_place_are_followed_or_held(body: Body) -> None:
    space = space_of(body)
    x = torch.randn(4, 6)
    with torch.no_grad():
        assert space.graph.model is not None
        assert difference(space.graph.model(x), space.graph.run(x)) < 1e-6
    assert "middle" in {f.name for f in space.families}
    assert all(entry.reason for entry in space.frozen)
    for seed in range(2):
        assert coppice.extract(space, space.random(seed)).receipt["equivalence"]["error"] <= 1e-9


def test_a_batch_size_that_forward_takes_for_a_number_is_fixed() -> None:
    graph = space_of(filled).graph
    assert not graph.batch_dynamic
    assert "fixed to that of the example" in graph.notes[0]
    with pytest.raises(coppice.UsageError, match=r"has shape \(5, 6\), and the graph takes \(4, 6\)"):
        graph.run(torch.randn(5, 6))


def test_a_custom_op_that_writes_is_traced_and_held() -> None:
    import customops

    def body(m: Net, h: Tensor) -> Tensor:
        h = torch.relu(h).clone()
        customops.scale_(h, 3.0)
        return h

    space = space_of(body)
    assert [f.name for f in space.families] == ["middle"]
    entry = next(e for e in space.frozen if e.axis == "first.weight[out]")
    assert entry.reason.startswith("passes through `auto_functionalized")
    assert coppice.extract(space, space.uniform(0.5)).receipt["equivalence"]["error"] <= 1e-9
