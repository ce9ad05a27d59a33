"""What people get wrong: each error names place, fact and remedy, has its exit code and leaves no files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import coppice
from clikit import Coppice, runner
from coppice.core.errors import StaleFactError

X = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """(N, 3, 8, 8) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.out = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.norm(self.conv1(x)))
        return self.out(torch.relu(self.conv2(x)).mean((2, 3)))


class Pair(nn.Module):
    """Two inputs of (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.a(x) + self.a(y)


class Branching(nn.Module):
    """Takes a path that depends on the data."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        h = self.a(x)
        if self.how == "if" and h.sum() > 0:
            h = h * 2
        if self.how == "item":
            for _ in range(int(x.abs().max().item())):
                h = torch.relu(h)
        if self.how == "numpy":
            h = torch.from_numpy(h.detach().numpy())
        return self.b(h)


def with_value(name: str, value: float) -> Net:
    net = Net()
    dict(net.state_dict(keep_vars=True))[name].data.view(-1)[0] = value
    return net


def half_meta() -> Net:
    net = Net()
    net.conv2.to("meta")
    return net


def space(model: nn.Module | None = None, example: Any = X, **options: Any) -> coppice.Space:
    return coppice.build_space(coppice.trace(model or Net(), example), **options)


def fails(call: Callable[[], object], code: int, *facts: str) -> coppice.CoppiceError:
    """``call`` raises an error of ours with this exit code, whose text holds ``facts``."""
    with pytest.raises(coppice.CoppiceError) as caught:
        call()
    error = caught.value
    assert error.exit_code == code
    for fact in facts:
        assert fact in str(error)
    return error


# ---- models and inputs ---------------------------------------------------------------------------------------------

MODELS: dict[str, tuple[Any, Any, int, list[str]]] = {
    "a path": ("model.pt", X, 2, ["trace: expected a torch.nn.Module, got str", "remedy: pass an instance"]),
    "a class": (Net, X, 2, ["expected a torch.nn.Module, got type", "not its class"]),
    "no inputs": (Net(), (), 2, ["no tensor among the example inputs"]),
    "a string": (Net(), "x", 2, ["no tensor among the example inputs"]),
    "an empty batch": (Net(), X[:0], 2, ["an example input of shape (0, 3, 8, 8) is empty"]),
    "an empty axis": (Net(), X[:, :, :0], 2, ["shape (2, 3, 0, 8) is empty"]),
    "wrong channels": (Net(), X[:, :2], 2, ["shapes [(2, 2, 8, 8)]", "to have 3 channels, but got 2", "bad_input.py:"]),
    "wrong rank": (Net(), X[0, 0], 2, ["shapes [(8, 8)]", "remedy: pass inputs of the shape"]),
    "wrong dtype": (Net(), X.long(), 2, ["does not run on the example inputs", "type"]),
    "one too many": (Net(), (X, X), 2, ["takes 2 positional arguments but 3 were given"]),
    "one too few": (Pair(), X[:, 0, 0, :4], 2, ["missing 1 required positional argument: 'y'"]),
    "a wrong name": (Net(), {"y": X}, 2, ["unexpected keyword argument 'y'"]),
    "NaN weights": (
        with_value("conv1.weight", float("nan")),
        X,
        2,
        ["parameter conv1.weight: 1 of 216 values are NaN"],
    ),
    "infinite weights": (with_value("out.bias", float("inf")), X, 2, ["parameter out.bias: 1 of 4 values"]),
    "NaN statistics": (with_value("norm.running_var", float("nan")), X, 2, ["buffer norm.running_var: it holds NaN"]),
    "inputs on meta": (Net(), X.to("meta"), 2, ["the model is on cpu and the example inputs on meta", "model.to("]),
    "half on meta": (half_meta(), X, 2, ["the model is on cpu and meta and the example inputs on cpu"]),
    "one input on meta": (Pair(), (X[0, 0], X[0, 0].to("meta")), 2, ["the example inputs on cpu and meta"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_and_inputs(case: str) -> None:
    model, example, code, facts = MODELS[case]
    fails(lambda: coppice.trace(model, example), code, *facts)


@pytest.mark.parametrize(
    ("how", "line"),
    [("if", 'if self.how == "if" and h.sum() > 0:'), ("item", ".item())"), ("numpy", "h.detach().numpy()")],
)
def test_control_flow_on_data_names_the_line(how: str, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    error = fails(lambda: coppice.trace(Branching(how), torch.ones(2, 4)), 3, "torch.where", "torch.cond")
    assert isinstance(error, coppice.TraceError)
    lines, first = inspect.getsourcelines(Branching)
    number = first + next(k for k, text in enumerate(lines) if line in text)
    assert error.place.startswith(f"{__file__}:{number} (")
    assert line in error.place
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_model_without_parameters() -> None:
    graph = coppice.trace(nn.Sequential(nn.ReLU(), nn.Flatten()), X)
    for call in (coppice.build_space, coppice.explain):
        fails(lambda call=call: call(graph), 3, "no parameters that its output depends on", "remedy: ")  # type: ignore[misc]


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"ignore": ["cnv1"]}, ["no layer or parameter is called 'cnv1'", "did you mean 'conv1'"]),
        ({"ignore": "conv1.wieght"}, ["did you mean 'conv1.weight'"]),
        ({"ignore": [nn.LSTM]}, ["no layer or parameter is called 'LSTM'"]),
        ({"ignore": [3]}, ["3 cannot name a layer", "a glob"]),
        ({"round_to": 0}, ["round_to is 0", "positive whole number"]),
        ({"bounds": {"conv9": 3}}, ["no family is called 'conv9'", "'conv1'"]),
        ({"bounds": {"conv1": 30}}, ["family conv1: a bound of 30 is outside 1..8"]),
    ],
)
def test_options_of_the_space(options: dict[str, Any], facts: list[str]) -> None:
    fails(lambda: space(**options), 2, *facts)


BUDGETS: list[tuple[Any, int, list[str]]] = [
    ({"macs": "banana"}, 2, ["budget macs=banana: 'banana' is no amount", '"50%"']),
    ({"speed": "50%"}, 2, ["no budget metric is called 'speed'", "'macs'"]),
    ({"maks": "50%"}, 2, ["did you mean 'macs'"]),
    ({"macs": "-5%"}, 2, ["'-5%' is no amount"]),
    ({"macs": -3}, 2, ["a budget must be positive"]),
    ({"macs": "150%"}, 2, ["above 0 and at most 100"]),
    ({"macs": "0%"}, 2, ["above 0 and at most 100"]),
    ({"macs": float("nan")}, 2, ["a budget must be positive"]),
    ({"macs": None}, 2, ["None is no amount"]),
    ({"macs": True}, 2, ["True is no amount"]),
    ({}, 2, ["{} is no budget"]),
    ("50%", 2, ["'50%' is no budget"]),
    ({"macs": "1%"}, 4, ["macs cannot go down to", "coppice explain"]),
]


@pytest.mark.parametrize(("budget", "code", "facts"), BUDGETS, ids=lambda value: str(value)[:24])
def test_budgets(budget: Any, code: int, facts: list[str]) -> None:
    error = fails(lambda: coppice.compress(Net(), X, budget=budget), code, *facts)
    if isinstance(error, coppice.BudgetError):
        reachable = error.closest["macs"]
        assert f"{reachable:,.0f}" in str(error)
        assert coppice.compress(Net(), X, budget={"macs": reachable}).receipt["costs"]["macs"]["after"] == reachable


def test_scores_that_cannot_be() -> None:
    found = space()
    fails(lambda: coppice.prune(found, {"macs": "50%"}, "magnitud"), 2, "no score is called", "'magnitude'")
    fails(lambda: coppice.prune(found, {"macs": "50%"}, "taylor"), 2, "needs calibration")
    fails(lambda: coppice.prune(found, {"macs": "50%"}, None), 2, "no score")  # type: ignore[arg-type]
    fails(lambda: coppice.prune(found, {"macs": "50%"}, {"conv1": [1.0]}), 2, "expected 8 scores, got shape (1,)")


# ---- configs -------------------------------------------------------------------------------------------------------


WRONG_CONFIGS = {
    "{": "not JSON",
    "[1]": "it is not {",
    '{"conv1": [0]}': "it is not {",
    '{"keep": {"a": 3}, "skip": []}': "not a list of unit indices",
    '{"keep": {}, "skip": [1]}': "it is not {",
}


def test_configs_that_do_not_fit() -> None:
    found = space()
    other = space(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(2, 3))
    config = coppice.Config.of
    fails(lambda: coppice.extract(found, other.full()), 2, "another space")
    fails(lambda: coppice.extract(found, config({"conv9": [0]})), 2, "no family is called 'conv9'", "'conv1'")
    fails(lambda: coppice.extract(found, config({"conv1": [0, 99]})), 2, "unit 99 does not exist; the family has 8")
    fails(lambda: coppice.extract(found, config({"conv1": [-1]})), 2, "unit -1 does not exist")
    fails(lambda: coppice.extract(found, config({"conv1": []})), 2, "keeps 0 of 8 units", "at least one")
    fails(lambda: coppice.extract(found, {"conv1": [0]}), 2, "expected a Config, got dict")  # type: ignore[arg-type]
    for text, fact in WRONG_CONFIGS.items():
        fails(lambda text=text: coppice.Config.from_json(text), 2, fact)  # type: ignore[misc]


def test_a_space_of_a_graph_that_has_changed() -> None:
    found = space()
    relu = next(node for node in found.graph.nodes if "relu" in node.name)
    found.graph.replace(relu, relu.all_input_nodes[0])
    error = fails(lambda: coppice.extract(found, found.full()), 1, "this space was computed at version", "remedy")
    assert isinstance(error, StaleFactError)


RAW_CALLS: dict[str, Callable[[], object]] = {
    "build_space of a model": lambda: coppice.build_space(Net()),  # type: ignore[arg-type]
    "extract of a model": lambda: coppice.extract(Net(), coppice.Config.of({})),  # type: ignore[arg-type]
    "a bound of text": lambda: space(bounds={"conv1": "half"}),
    "ignore none": lambda: space(ignore=None),
    "ignore a number": lambda: space(ignore=3),
    "one batch for calibration": lambda: coppice.compress(Net(), X, budget={"macs": "50%"}, calibration=X),
    "calibration by number": lambda: coppice.prune(space(), {"macs": "50%"}, "taylor", 8),  # type: ignore[arg-type]
    "calibration of a wrong shape": lambda: coppice.compress(
        Net(), X, budget={"macs": "50%"}, calibration=[X[:, :2]], score="taylor"
    ),
}


@pytest.mark.parametrize("call", RAW_CALLS)
def test_other_slips_are_usage_errors(call: str) -> None:
    fails(RAW_CALLS[call], 2)


# ---- through the command line --------------------------------------------------------------------------------------


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Coppice:
    (tmp_path / "bad.py").write_text(
        f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        "import torch\nfrom torch import nn\nfrom test_bad_input import Branching, MODELS, Net\n"
        "def untraceable():\n    return Branching('if'), torch.ones(2, 4)\n"
        "def nan():\n    return MODELS['NaN weights'][:2]\n"
        "def channels():\n    return MODELS['wrong channels'][:2]\n"
        "def empty():\n    return nn.Sequential(nn.ReLU(), nn.Flatten()), torch.ones(2, 4)\n"
        "def meta():\n    return MODELS['inputs on meta'][:2]\n"
        "def hollow():\n    return Net().to('meta'), torch.randn(2, 3, 8, 8)\n"
    )
    return runner(tmp_path, monkeypatch, capsys)


COMMANDS: list[tuple[str, list[str], int, list[str]]] = [
    ("bad.py:untraceable", ["macs=50%"], 3, ["test_bad_input.py:", "h.sum() > 0", "torch.where"]),
    ("bad.py:nan", ["macs=50%"], 2, ["parameter conv1.weight", "NaN"]),
    ("bad.py:channels", ["macs=50%"], 2, ["to have 3 channels"]),
    ("bad.py:empty", ["macs=50%"], 3, ["no parameters"]),
    ("bad.py:meta", ["macs=50%"], 2, ["the example inputs on meta"]),
    ("bad.py:hollow", ["macs=50%"], 3, ["error: bad.py:hollow: the model is on meta tensors", "coppice explain"]),
    ("model.py:build", ["macs=banana"], 2, ["'banana' is no amount"]),
    ("model.py:build", ["speed=50%"], 2, ["no budget metric is called 'speed'"]),
    ("model.py:build", ["macs=-5"], 2, ["must be positive"]),
    ("model.py:build", ["macs=150%"], 2, ["at most 100"]),
    ("model.py:build", ["macs=50%", "--ignore", "cnv1"], 2, ["did you mean 'conv1'"]),
    ("model.py:build", ["macs=50%", "--round-to", "0"], 2, ["--round-to", "greater than or equal to 1"]),
    ("model.py:build", ["macs=50%", "--score", "magnitud"], 2, ["'magnitude'"]),
    ("model.py:build", ["macs=50%", "--score", "taylor"], 2, ["needs calibration"]),
    ("model.py:build", ["macs=50%", "--calibration", "none.npz"], 2, ["none.npz: there is no such file"]),
    ("model.py:build", ["macs=1%"], 4, ["closest: macs="]),
]


@pytest.mark.parametrize(("target", "options", "code", "facts"), COMMANDS, ids=lambda value: str(value)[:40])
def test_compile_explains_and_writes_nothing(
    cli: Coppice, tmp_path: Path, target: str, options: list[str], code: int, facts: list[str]
) -> None:
    before = {p.name for p in tmp_path.iterdir()}
    shown = cli("compile", target, "--out", "result", "--json", "--budget", *options)
    assert shown.code == code
    assert shown.json["error"]["exit_code"] == code
    assert "Traceback" not in shown.err
    for fact in facts:
        assert fact in shown.err
    assert {p.name for p in tmp_path.iterdir()} - before <= {"__pycache__"}


def test_the_closest_budget_can_be_pasted_back(cli: Coppice) -> None:
    shown = cli("compile", "model.py:build", "--budget", "macs=1%", "--out", "result")
    closest = next(line.split(": ")[1] for line in shown.err.splitlines() if line.startswith("  closest"))
    assert cli("compile", "model.py:build", "--budget", closest, "--out", "result").code == 0


def test_compile_does_not_touch_what_is_not_its_own(cli: Coppice, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("two years of work")
    for out, fact in {
        "thesis": "holds something else",
        ".": "holds something else",
        "model.py": "is a file",
        "model.py/x": "is a file",
    }.items():
        shown = cli("compile", "model.py:build", "--budget", "macs=50%", "--out", out)
        assert shown.code == 2
        assert f"error: --out {out}: " in shown.err
        assert fact in shown.err
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "two years of work"
