"""Recurrent layers: what a unit owns, where its state must start, and what comes out of a cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import coppice
from coppice import Space
from coppice.passes.extract.check import difference
from zoo.case import randomise
from zoo.recurrent import Cells, Classifier, Ends, Translator, pair


def space_of(model: nn.Module, *inputs: Tensor) -> Space:
    randomise(model)
    return coppice.build_space(coppice.trace(model.eval(), inputs))


class Started(nn.Module):
    """An LSTM whose first state ``start`` makes from the batch's context vector."""

    def __init__(self, start: Callable[[Started, Tensor], Tensor]) -> None:
        super().__init__()
        self.make = nn.Linear(5, 8)
        self.rnn = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.start = start
        self.register_buffer("given", torch.randn(1, 1, 8))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        state = self.start(self, context)[None]
        result: Tensor = self.head(self.rnn(x, (state, torch.zeros(1, len(x), 8)))[0][:, -1])
        return result


def started(start: Callable[[Started, Tensor], Tensor]) -> Space:
    return space_of(Started(start), torch.randn(2, 4, 6), torch.randn(2, 5))


def test_a_unit_owns_its_row_of_every_gate_and_is_read_by_one_column() -> None:
    space = space_of(Classifier(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True), torch.randn(2, 4, 10))
    (family,) = space.families
    assert (family.name, family.size) == ("rnn", 12)
    per_unit = {(s.tensor, s.role): s.per_unit for s in family.slices}
    for layer in ("l0", "l0_reverse", "l1", "l1_reverse"):
        assert per_unit[f"rnn.weight_ih_{layer}", "out"] == per_unit[f"rnn.bias_hh_{layer}", "out"] == 4
        assert per_unit[f"rnn.weight_hh_{layer}", "in"] == 1
    assert per_unit["rnn.weight_ih_l1", "in"] == per_unit["head.weight", "in"] == 2
    masked = {(s.tensor, s.role) for s in family.slices if s.masked}
    assert not {m for m in masked if m[1] == "in"}, "columns meet zeros: they are cut, never zeroed"
    keep = [u for u in range(12) if u not in (3, 7)]
    rows = space.keep_masks(coppice.Config.of({"rnn": keep}))["rnn.weight_ih_l0"][0]
    assert rows is not None
    assert [i for i in range(48) if not rows[i]] == [3, 7, 15, 19, 27, 31, 39, 43]


def test_the_cost_of_a_layer_is_its_matrices_at_every_step() -> None:
    space = space_of(Classifier(nn.GRU, num_layers=2, batch_first=True), torch.randn(2, 7, 10))
    macs = space.cost(space.full())["macs"][0]
    assert macs == 7 * (3 * 12 * (10 + 12) + 3 * 12 * (12 + 12)) + 12 * 5
    half = space.cost(space.uniform(0.5))["macs"][0]
    assert half == 7 * (3 * 6 * (10 + 6) + 3 * 6 * (6 + 6)) + 6 * 5


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    "stacked LSTM": (lambda: Classifier(nn.LSTM, num_layers=2, batch_first=True), (4, 10)),
    "projected LSTM": (lambda: Classifier(nn.LSTM, num_layers=2, proj_size=6, batch_first=True), (4, 10)),
    "bidirectional GRU": (lambda: Classifier(nn.GRU, bidirectional=True, batch_first=True), (4, 10)),
    "RNN": (lambda: Classifier(nn.RNN, nonlinearity="relu", bias=False, batch_first=True), (4, 10)),
    "LSTM cells": (lambda: Cells(nn.LSTMCell), (3, 10)),
    "GRU cells": (lambda: Cells(nn.GRUCell), (3, 10)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_users_class_comes_back_and_says_its_sizes(name: str, tmp_path: Path) -> None:
    make, size = MODELS[name]
    model, x = make(), torch.randn(2, *(size or ()))
    space = space_of(model, x)
    subnet = coppice.extract(space, space.uniform(0.5))
    assert subnet.receipt["module"]["kind"] == "user", subnet.receipt["module"]
    assert subnet.receipt["module"]["reference"] == "user"
    layer = next(m for m in subnet.module.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase)))
    weight = layer.weight_ih_l0 if isinstance(layer, nn.RNNBase) else layer.weight_ih
    assert isinstance(weight, Tensor)
    assert layer.input_size == weight.shape[1] == 10
    projected = bool(getattr(layer, "proj_size", 0))
    assert layer.hidden_size == (12 if projected else 6)
    assert getattr(layer, "proj_size", 0) == (3 if projected else 0)
    loaded = coppice.load(subnet.save(tmp_path / "subnet"))
    for batch in (1, 3):
        other = torch.randn(batch, *x.shape[1:])
        with torch.no_grad():
            assert difference(subnet.reference()(other), subnet.module(other)) < 1e-5
            assert difference(subnet.module(other), loaded.module(other)) < 1e-6


def test_trained_weights_are_the_ones_that_run() -> None:
    """The layer keeps a second list of its weights: it must be that of the new ones."""
    space = space_of(Classifier(nn.LSTM, batch_first=True), torch.randn(2, 4, 10))
    module = coppice.extract(space, space.uniform(0.5)).module
    assert isinstance(module, Classifier)
    assert all(a is b for a, b in zip(module.rnn._flat_weights, module.rnn.parameters(), strict=True))
    module(torch.randn(2, 4, 10)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


class Small(nn.Module):
    """As many layers as hidden units as inputs: a number that changes must not be taken for one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 2, num_layers=2, batch_first=True)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(x)[0])
        return result


def test_the_number_of_layers_is_not_a_width() -> None:
    space = space_of(Small(), torch.randn(3, 4, 2))
    module = coppice.extract(space, space.uniform(0.5)).module
    assert isinstance(module, Small)
    assert (module.rnn.num_layers, module.rnn.hidden_size, module.rnn.input_size) == (2, 1, 2)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (lambda model, context: context.repeat(1, 2)[:, :8], "still contributes"),
        (lambda model, context: torch.sigmoid(model.make(context)), "still contributes"),
        (lambda model, context: model.make(context) * 0 + 1, "still contributes"),
        (lambda model, context: model.given[0].expand(context.shape[0], -1), "still contributes"),
    ],
    ids=["data", "sigmoid", "ones", "buffer"],
)
def test_a_first_state_that_is_not_zero_holds_the_units(
    start: Callable[[Started, Tensor], Tensor], reason: str
) -> None:
    space = started(start)
    assert not [s for f in space.families for s in f.slices if s.tensor.startswith("rnn")]
    entry = next(e for e in space.frozen if e.axis == "rnn.weight_ih_l0[out]")
    assert reason in entry.reason
    assert coppice.extract(space, space.uniform(0.5)).receipt["equivalence"]["error"] <= 1e-9


def test_a_first_state_that_the_model_takes_holds_the_units() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            result: Tensor = self.head(self.rnn(x, state)[0])
            return result

    space = space_of(Given(), torch.randn(2, 4, 6), torch.randn(1, 2, 8))
    assert not space.families
    entry = next(e for e in space.frozen if e.axis == "rnn.weight_hh_l0[out]")
    assert entry.reason == "is tied to an axis of the model's input `state`"


@pytest.mark.parametrize(
    "start",
    [lambda model, context: model.make(context), lambda model, context: torch.tanh(model.make(context))],
    ids=["linear", "tanh"],
)
def test_a_first_state_that_a_layer_makes_leaves_with_the_units(start: Callable[[Started, Tensor], Tensor]) -> None:
    space = started(start)
    (family,) = space.families
    assert {"make.weight[out]", "make.bias[out]", "rnn.weight_ih_l0[out]"} <= {str(s) for s in family.slices}
    for config in (space.uniform(0.5), space.random(1)):
        assert coppice.extract(space, config).receipt["equivalence"]["error"] <= 1e-9


def test_a_state_handed_on_ties_two_layers() -> None:
    space = space_of(Translator(), *pair(2))
    sizes = {f.name: f.size for f in space.families}
    assert sizes == {"embed": 10, "encoder": 12}
    assert {s.tensor.split(".")[0] for s in space.family("encoder").slices} == {"encoder", "decoder", "head"}


def test_cut_with_the_layer_before_and_after() -> None:
    space = space_of(Ends(), torch.randint(0, 24, (2, 5)))
    assert {f.name for f in space.families} == {"embed", "inp", "rnn"}
    for seed in range(3):
        assert coppice.extract(space, space.random(seed)).receipt["equivalence"]["error"] <= 1e-9


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_onnx(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    model = Classifier(kind, bidirectional=True, batch_first=True)
    space = space_of(model, torch.randn(2, 4, 10))
    subnet = coppice.extract(space, space.uniform(0.5))
    subnet.export_onnx(tmp_path / "model.onnx")
    assert subnet.receipt["onnx"]["checked"]["error"] < 1e-4


Reader = Callable[["Heads", Tensor], Tensor]


class Heads(nn.Module):
    """A bidirectional layer whose results are read in the ways that people do."""

    def __init__(self, read: Reader) -> None:
        super().__init__()
        self.layers, self.hidden = 2, 10
        self.rnn = nn.GRU(6, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.one, self.two, self.four = nn.Linear(10, 3), nn.Linear(20, 3), nn.Linear(40, 3)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self, x)


def attend(m: Heads, x: Tensor) -> Tensor:
    y = m.rnn(x)[0]
    result: Tensor = m.two((y @ y.transpose(1, 2)).softmax(-1) @ y)
    return result


READERS: dict[str, Reader] = {
    "zeros of its own": lambda m, x: m.two(m.rnn(x, torch.zeros(2 * m.layers, len(x), m.hidden))[0]),
    "directions summed": lambda m, x: m.one(m.rnn(x)[0].unflatten(-1, (2, m.hidden)).sum(2)),
    "directions cut apart": lambda m, x: m.one(m.rnn(x)[0][..., :10] + m.rnn(x)[0][..., 10:]),
    "all last states": lambda m, x: m.four(m.rnn(x)[1].permute(1, 0, 2).flatten(1)),
    "top layer's last states": lambda m, x: m.two(torch.cat([*m.rnn(x)[1].view(m.layers, 2, -1, m.hidden)[-1]], 1)),
    "pooled": lambda m, x: m.two(m.rnn(x)[0].max(1)[0]),
    "attended": attend,
    "run twice": lambda m, x: m.two(m.rnn(x, m.rnn(x)[1])[0]),
}


@pytest.mark.parametrize("name", READERS)
def test_the_ways_to_read_a_layer(name: str) -> None:
    space = space_of(Heads(READERS[name]), torch.randn(3, 5, 6))
    assert [(f.name, f.size) for f in space.families] == [("rnn", 10)]
    for config in (space.uniform(0.5), space.random(1)):
        subnet = coppice.extract(space, config)
        assert subnet.receipt["equivalence"]["error"] <= 1e-9
        assert subnet.receipt["module"]["kind"] == ("graph" if name == "directions cut apart" else "user")
