"""Finding and calling the user's function, example inputs by shape, calibration files, settings files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clikit import MODEL, Coppice
from coppice.cli.data import parse_inputs, read_calibration
from coppice.cli.settings import compile_settings, parse_budget
from coppice.core.errors import UsageError

RAISED = 1 + MODEL.splitlines().index('    raise ValueError("no checkpoint here")')


@pytest.mark.parametrize(
    ("target", "facts"),
    [
        ("model.py", ["error: model.py: it names no function", "write model.py:build"]),
        ("model.py:", ["it names no function", "write model.py:build"]),
        ("modle.py:build", ["error: modle.py: there is no such file", "did you mean model.py?"]),
        ("nowhere/model.py:build", ["there is no folder nowhere"]),
        ("./:build", ["it is a folder"]),
        ("model.py:biuld", ["error: model.py:biuld: it has no 'biuld'", "did you mean build"]),
        ("model.py:Net.width", ["it has no 'width'"]),
        ("model.py:needs", ["missing a required argument: 'width'", "without required arguments"]),
        (
            "model.py:fails",
            [f"model.py:{RAISED} (raise ValueError", "calling it raised ValueError: no checkpoint here"],
        ),
        ("model.py:leaves", ["calling it raised SystemExit: 7"]),
        ("model.py:number", ["it returned an object of type int", "(module, example_inputs)"]),
        ("model.py:value", ["it is an object of type int, not a function"]),
        ("model.py:bare", ["there are no example inputs", "--input 1x3x32x32"]),
        ("modle:build", ["there is no module 'modle'"]),
        ("model.build", ["it names no function"]),
    ],
)
def test_a_slip_in_the_target_is_named(coppice: Coppice, target: str, facts: list[str]) -> None:
    shown = coppice("explain", target)
    assert shown.code == 2
    assert shown.out == ""
    assert "Traceback" not in shown.err
    for fact in facts:
        assert fact in shown.err


@pytest.mark.parametrize(
    ("source", "fact"),
    [
        ("def build(:\n", "broken.py:1: importing it raised SyntaxError"),
        (
            "x = 1\nimport nothing_of_this_name\n",
            "broken.py:2 (import nothing_of_this_name): importing it raised Module",
        ),
        ("raise RuntimeError('first\\nsecond')\n", "importing it raised RuntimeError: first\n"),
    ],
)
def test_a_file_that_cannot_be_imported(coppice: Coppice, tmp_path: Path, source: str, fact: str) -> None:
    (tmp_path / "broken.py").write_text(source)
    for target in ("broken.py:build", "broken:build"):
        shown = coppice("explain", target)
        assert shown.code == 2
        assert fact in shown.err.replace(f"{tmp_path}/", "")


def test_a_file_may_import_its_neighbours_and_return_a_tuple(coppice: Coppice, tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "neighbour_of_net.py").write_text("from torch import nn\nmake = lambda: nn.Linear(3, 2)\n")
    (folder / "net.py").write_text(
        "import torch\nfrom dataclasses import dataclass\nfrom neighbour_of_net import make\n"
        "@dataclass\nclass Builders:\n    x: int = 0\n"
        "    @staticmethod\n    def build():\n        return make(), (torch.randn(2, 3),)\n"
    )
    assert coppice("trace", "deep/net.py:Builders.build", "--summary").code == 0


# ---- example inputs ------------------------------------------------------------------------------------------------


def test_inputs_are_made_by_shape_and_type() -> None:
    x, ids, mask = parse_inputs(["1x3x8x8", "2x5:int64", "4:bool"])
    assert (x.shape, x.dtype) == ((1, 3, 8, 8), torch.float32)
    assert (ids.shape, ids.dtype) == ((2, 5), torch.int64)
    assert (mask.shape, mask.dtype) == ((4,), torch.bool)
    assert torch.equal(x, parse_inputs(["1x3x8x8"])[0])
    named = parse_inputs(["a=2x3:float64", "b=2x3:float64"])
    assert list(named) == ["a", "b"]
    assert not torch.equal(named["a"], named["b"])
    assert parse_inputs([]) is None


@pytest.mark.parametrize(
    ("specs", "fact"),
    [
        (["banana"], "--input banana: it is no shape"),
        (["1x3x"], "it is no shape"),
        (["1x0x3"], "it holds 0 elements"),
        (["99999x99999x99999"], "999,970,000,299,999 elements"),
        (["1x3:flot32"], "'float32'"),
        (["a=1x3", "1x3"], "some inputs have names"),
        (["a=1x3", "a=1x3"], "given twice"),
    ],
)
def test_bad_shapes_are_refused(specs: list[str], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        parse_inputs(specs)


# ---- calibration ---------------------------------------------------------------------------------------------------


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


ONE = nn.Linear(3, 2)
X = torch.zeros(2, 3)


def test_calibration_is_read_in_batches(tmp_path: Path) -> None:
    data = np.arange(30, dtype=np.float64).reshape(10, 3)
    np.savez(tmp_path / "data.npz", anything=data, targets=np.arange(10))
    batches = read_calibration(tmp_path / "data.npz", ONE, X, 4)
    assert [len(targets) for _, targets in batches] == [4, 4, 2]
    (first,), targets = batches[0]
    assert first.dtype == torch.float32
    assert torch.equal(first, torch.from_numpy(data[:4]).float())
    assert targets.tolist() == [0, 1, 2, 3]


def test_several_inputs_are_matched_by_name(tmp_path: Path) -> None:
    arrays = {"right": torch.ones(4, 3), "left": torch.zeros(4, 3)}
    save_file(arrays, str(tmp_path / "data.safetensors"))
    (inputs, targets), *_ = read_calibration(tmp_path / "data.safetensors", Two(), (X, X), 64)
    assert [float(x.mean()) for x in inputs] == [0.0, 1.0]
    assert targets is None
    (named, _), *_ = read_calibration(tmp_path / "data.safetensors", Two(), {"left": X, "right": X}, 64)
    assert sorted(named) == ["left", "right"]


@pytest.mark.parametrize(
    ("arrays", "model", "example", "fact"),
    [
        ({"x": np.zeros((4, 5))}, ONE, X, r"'input' has shape \(4, 5\), and the example input \(2, 3\)"),
        ({"x": np.zeros((0, 3))}, ONE, X, r"shape \(0, 3\)"),
        ({"x": np.full((4, 3), np.nan)}, ONE, X, "holds NaN or infinity"),
        ({"x": np.zeros((4, 3)), "targets": np.zeros(5)}, ONE, X, r"different numbers of samples: \[4, 5\]"),
        ({"targets": np.zeros(5)}, ONE, X, "it holds no inputs"),
        ({"left": np.zeros((4, 3)), "rihgt": np.zeros((4, 3))}, Two(), (X, X), "did you mean 'right'"),
        ({"left": np.zeros((4, 3))}, Two(), (X, X), "there is no array 'right'"),
        ({"x": np.array([{}], dtype=object)}, ONE, X, "no .npz file of plain arrays"),
    ],
)
def test_calibration_that_does_not_fit(
    tmp_path: Path, arrays: dict[str, Any], model: nn.Module, example: Any, fact: str
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(UsageError, match=fact):
        read_calibration(tmp_path / "data.npz", model, example, 64)


@pytest.mark.parametrize("name", ["missing.npz", "junk.npz", "junk.safetensors", "junk.pt"])
def test_calibration_files_that_are_none(tmp_path: Path, name: str) -> None:
    if name != "missing.npz":
        (tmp_path / name).write_bytes(b"junk" * 10)
    with pytest.raises(UsageError, match=name):
        read_calibration(tmp_path / name, ONE, X, 64)


def test_a_calibration_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coppice.cli.data.MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(2 << 20))
    with pytest.raises(UsageError, match="2,097,152 bytes"):
        read_calibration(tmp_path / "bomb.npz", ONE, X, 64)


def test_compile_uses_the_calibration(coppice: Coppice, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((8, 3, 8, 8)), targets=np.arange(8) % 4)
    options = (
        "--budget",
        "macs=50%",
        "--out",
        "result",
        "--score",
        "taylor",
        "--calibration",
        "data.npz",
        "--batch",
        "4",
    )
    data = coppice("compile", "model.py:build", *options, "--json").json
    assert data["recalibrated"] == ["norm.running_mean", "norm.running_var"]


def test_compile_reforms_on_request(coppice: Coppice, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((32, 3, 8, 8)))
    options = ("compile", "model.py:build", "--budget", "macs=50%", "--out", "result", "--reform")
    data = coppice(*options, "--calibration", "data.npz", "--json").json
    assert data["reformed"]["weights"]
    assert data["equivalence"]["error"] < 1e-9
    assert "weights fitted to the full model: " in coppice(*options, "--calibration", "data.npz").out
    without = coppice(*options)
    assert without.code == 2
    assert "--reform: it needs data" in without.err


# ---- settings ------------------------------------------------------------------------------------------------------

GIVEN = {"model": "m.py:build", "out": Path("out"), "budget": {"macs": "50%"}}


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("model: a.py:build\nout: there\nbudget: {macs: 0.5, params: 100}\nseed: 3\nround_to: 8\n")
    settings = compile_settings(path, {"out": Path("here"), "seed": None, "round_to": 4})
    assert (settings.model, settings.out, settings.seed, settings.round_to) == ("a.py:build", Path("here"), 3, 4)
    assert settings.budget == {"macs": 0.5, "params": 100}


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("round-to: 8", ["settings.yaml: round-to: there is no setting 'round-to'", "did you mean 'round_to'?"]),
        ("budgget: {macs: 1}", ["did you mean 'budget'?"]),
        ("zzzz: 1", ["the keys are model, out, budget"]),
        ("round_to: eight", ["settings.yaml: round_to: input should be a valid integer"]),
        ("batch: 0", ["settings.yaml: batch: input should be greater than or equal to 1"]),
        ("bounds: {conv1: [1]}", ["settings.yaml: bounds:", "(at conv1"]),
        ("[1, 2]", ["it is no mapping"]),
        ("1: 2", ["it is no mapping"]),
        ("a: [", ["it is no YAML"]),
        ("a: !!python/object/apply:os.system [exit]", ["it is no YAML"]),
    ],
)
def test_a_bad_settings_file_is_explained(tmp_path: Path, text: str, facts: list[str]) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        compile_settings(path, GIVEN)
    for fact in facts:
        assert fact in str(caught.value)


@pytest.mark.parametrize(("key", "option"), [("model", "MODEL"), ("out", "--out"), ("budget", "--budget")])
def test_what_is_missing_is_named(key: str, option: str) -> None:
    with pytest.raises(UsageError, match=f"^{option}: it is missing"):
        compile_settings(None, {k: v for k, v in GIVEN.items() if k != key})


def test_a_large_settings_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("# padding\n" * 200_000)
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        compile_settings(path, GIVEN)


def test_budgets_are_split_and_plain_numbers_are_numbers() -> None:
    assert parse_budget(["macs=50%", "params = 0.5", "bytes=1000"]) == {"macs": "50%", "params": 0.5, "bytes": 1000}
    assert parse_budget(None) is None
    for bad in ("macs", "=5", "macs="):
        with pytest.raises(UsageError, match="it is no budget"):
            parse_budget([bad])
    with pytest.raises(UsageError, match="given twice"):
        parse_budget(["macs=1", "macs=2"])
