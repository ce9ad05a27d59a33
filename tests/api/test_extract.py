"""`extract`: the receipt tells the truth, and a subnet that differs from its reference is never handed out."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import coppice
from coppice import (
    Config,
    CoppiceError,
    EquivalenceError,
    Graph,
    Space,
    UsageError,
    build_space,
    compress,
    extract,
    trace,
)
from coppice.core.labels import Label
from zoo import MODELS
from zoo.case import randomise

Lie = Callable[..., None]


@pytest.fixture(scope="module")
def space() -> Space:
    return build_space(trace(MODELS["digits"].build(), torch.randn(2, 1, 8, 8)))


# ---- the receipt ---------------------------------------------------------------------------------------------------


def test_the_receipt_has_these_fields_and_is_json(space: Space) -> None:
    config = space.random(3)
    receipt = json.loads(json.dumps(extract(space, config, seed=5).receipt))
    assert receipt == {
        "coppice": coppice.__version__,
        "model": "DigitsNet",
        "costs": {
            metric: {"before": float(before[0]), "after": float(space.cost(config)[metric][0])}
            for metric, before in space.cost(space.full()).items()
        },
        "equivalence": {
            "error": receipt["equivalence"]["error"],
            "tolerance": 1e-9,
            "dtype": "float64",
            "trials": 4,
            "batches": [2, 3],
        },
        "folded": [],
        "validated": True,
        "config": {"keep": {name: list(units) for name, units in config.items()}, "skip": []},
        "widths": {f.name: [f.size, len(config[f.name])] for f in space.families},
        "options": {"round_to": 1, "ignore": [], "residual": "exact"},
        "notes": [],
        "seed": 5,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "module": {"kind": "user", "why": "", "reference": "user", "class": "DigitsNet", "rewritten": []},
    }
    assert 0 <= receipt["equivalence"]["error"] < 1e-9


@pytest.mark.parametrize("name", ["digits", "mlp_bn", "resnext", "vit"])
def test_the_costs_are_those_of_the_module(name: str) -> None:
    case = MODELS[name]
    model, (args, _) = case.build(), case.args(1)
    space = build_space(trace(model, args))
    subnet = extract(space, space.random(1))
    for when, module in (("before", model), ("after", subnet.module)):
        costs = {metric: both[when] for metric, both in subnet.receipt["costs"].items()}
        assert costs["params"] == sum(p.numel() for p in module.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*args)
        assert costs["macs"] == counter.get_total_flops() / 2


def test_the_bytes_are_those_of_the_stored_tensors(space: Space, tmp_path: Path) -> None:
    subnet = extract(space, space.uniform(0.5))
    stored = sum(t.numel() * t.element_size() for t in subnet.tensors().values())
    assert subnet.receipt["costs"]["bytes"]["after"] == stored
    assert 0 < (subnet.save(tmp_path / "s") / "weights.safetensors").stat().st_size - stored < 8192


# ---- what may be given ---------------------------------------------------------------------------------------------


def test_a_graph_will_do_and_finds_the_space_its_config_came_from() -> None:
    graph = trace(MODELS["digits"].build(), torch.randn(2, 1, 8, 8))
    space = build_space(graph, round_to=4, ignore="block1.*")
    subnet = extract(graph, space.uniform(0.5))
    assert subnet.space is space
    assert subnet.receipt["options"] == {"round_to": 4, "ignore": ["block1.*"], "residual": "exact"}


def test_a_config_from_json_will_do(space: Space) -> None:
    config = space.random(7)
    twin = Config.from_json(config.to_json())
    assert twin == config
    one, two = extract(space, config).module.state_dict(), extract(space.graph, twin).module.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_families_that_a_config_leaves_out_stay_whole(space: Space) -> None:
    widths = extract(space, Config.of({"block1.conv1": [0, 5]})).receipt["widths"]
    assert widths == {f.name: [f.size, 2 if f.name == "block1.conv1" else f.size] for f in space.families}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"stem": [0]}, "expected a Config"),
        (None, "expected a Config"),
        (Config.of({"steem": [0]}), "no family is called"),
        (Config.of({"stem": [99]}), "unit 99 does not exist"),
        (Config.of({"stem": [-1]}), "does not exist"),
        (Config.of({"stem": []}), "fewer than 1"),
    ],
    ids=str,
)
def test_what_is_no_config_of_this_space_is_refused(space: Space, config: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        extract(space, config)


def test_a_config_of_another_space_is_refused(space: Space) -> None:
    other = build_space(trace(MODELS["mlp"].build(), torch.randn(2, 32)))
    with pytest.raises(UsageError, match="another space"):
        extract(space, other.uniform(0.5))


def test_without_validation_the_receipt_says_so(space: Space) -> None:
    receipt = extract(space, space.uniform(0.5), validate=False).receipt
    assert (receipt["validated"], receipt["equivalence"]) == (False, None)


def test_meta_tensors_are_cut_and_said_to_be_unproved() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
        graph: Graph = trace(model, torch.randn(2, 6))
    space = build_space(graph)
    subnet = extract(space, space.uniform(0.5))
    assert not subnet.receipt["validated"]
    assert subnet.receipt["costs"]["params"] == {"before": 123.0, "after": 63.0}
    assert [tuple(p.shape) for p in subnet.module.parameters()] == [(6, 6), (6,), (3, 6), (3,)]


# ---- proof ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """(N, 6) -> (N, 3), with some operation on the hidden units."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.op(self.a(x)))
        return result


def untouched(flow: Any, call: Any) -> Label:
    """The lie: zero stays zero, every unit stays where it is."""
    label: Label = flow.of(call.tensors()[0][1])
    return label


LIES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "sigmoid of zero is a half": ("aten.sigmoid", torch.sigmoid),
    "the cosine of zero is one": ("aten.cos", torch.cos),
    "softmax counts its units": ("aten.softmax", lambda x: torch.softmax(x, 1)),
    "flip moves units": ("aten.flip", lambda x: torch.flip(x, (1,))),
    "a batch's maximum is of all units": ("aten.amax", lambda x: x - torch.amax(x, 1, keepdim=True)),
    "cumsum carries units on": ("aten.cumsum", lambda x: torch.cumsum(torch.sigmoid(x) - 0.5, 1)),
}


@pytest.mark.parametrize(("row", "op"), LIES.values(), ids=LIES.keys())
def test_where_a_row_lies_the_subnet_is_refused(row: str, op: Callable[[Tensor], Tensor], lie: Lie) -> None:
    model = Net(op).eval()
    randomise(model)
    honest = build_space(trace(model, torch.randn(2, 6)))
    if honest.families:
        assert extract(honest, honest.uniform(0.5)).receipt["equivalence"]["error"] < 1e-9
    lie(row, labels=untouched)
    space = build_space(trace(model, torch.randn(2, 6)))
    with pytest.raises(EquivalenceError) as caught:
        extract(space, space.uniform(0.5))
    assert caught.value.exit_code == 5
    assert caught.value.error > 1e-9
    assert "Net" in caught.value.place
    assert "ignore=" in caught.value.remedy


def test_where_a_row_lies_nothing_is_written(lie: Lie, tmp_path: Path) -> None:
    model = Net(torch.sigmoid).eval()
    lie("aten.sigmoid", labels=untouched)
    with pytest.raises(EquivalenceError):
        compress(model, torch.randn(2, 6), budget={"macs": 0.5}).save(tmp_path / "subnet")
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_5_and_writes_nothing(lie: Lie, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coppice.cli.main import run

    example = Path(__file__).resolve().parents[2] / "examples" / "softmax.py"
    monkeypatch.chdir(tmp_path)
    lie("aten.softmax", labels=untouched)
    assert run(["compile", f"{example}:build", "--budget", "macs=50%", "--out", "small"]) == 5
    assert list(tmp_path.iterdir()) == []


class Reshape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 128)


def test_a_subnet_that_does_not_even_run_is_refused_by_name(lie: Lie) -> None:
    """The labels are right and the rewrite is missing: the flattened size stays that of the full model."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), Reshape(), nn.Linear(128, 3)).eval()
    x = torch.randn(2, 1, 6, 6)
    space = build_space(trace(model, x))
    assert extract(space, space.uniform(0.5)).receipt["validated"]
    lie("aten.reshape", rewrite=None)
    lie("aten.view", rewrite=None)
    with pytest.raises(CoppiceError) as caught:
        extract(space, space.uniform(0.5))
    assert caught.value.place
    assert caught.value.remedy


def test_the_tolerance_is_the_callers(space: Space) -> None:
    with pytest.raises(EquivalenceError, match=r"allowed: -1\)"):
        extract(space, space.uniform(0.5), tolerance=-1.0)
