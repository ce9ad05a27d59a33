"""Each command on small models: what it prints for people, what for programs, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import coppice as package
from clikit import Coppice
from coppice.core.text import from_text

# ---- trace ---------------------------------------------------------------------------------------------------------


def test_trace_prints_the_text_form(coppice: Coppice) -> None:
    shown = coppice("trace", "model.py:build")
    assert shown.code == 0
    assert shown.out.startswith("def Net(x: f32[")
    assert "aten.conv2d.default(" in shown.out
    assert "# model.py:" in shown.out
    assert "the user's own print" in shown.err


def test_trace_writes_a_file_that_parses_back(coppice: Coppice, tmp_path: Path) -> None:
    shown = coppice("trace", "model.py:build", "--out", "graph.txt")
    assert shown.code == 0
    assert "written to graph.txt" in shown.out
    sizes = {"conv1": (8, 3, 3, 3), "conv2": (8, 8, 3, 3), "out": (4, 8), "norm": (8,)}
    tensors = {f"{name}.weight": torch.zeros(shape) for name, shape in sizes.items()}
    tensors |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in sizes.items()}
    tensors |= {"norm.running_mean": torch.zeros(8), "norm.running_var": torch.ones(8)}
    graph = from_text((tmp_path / "graph.txt").read_text(), tensors)
    assert graph.run(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_trace_as_json_and_as_a_summary(coppice: Coppice) -> None:
    data = coppice("trace", "model.py:build", "--json").json
    assert data["model"] == "Net"
    assert data["inputs"] == {"x": [2, 3, 8, 8]}
    assert data["parameters"] == {"tensors": 8, "elements": 860}
    assert data["batch"] == "dynamic"
    assert data["text"].startswith("def Net(")
    shown = coppice("trace", "model.py:build", "--summary")
    assert "860 in 8 tensors" in shown.out
    assert "aten" not in shown.out


def test_inputs_may_come_from_the_command_line(coppice: Coppice) -> None:
    assert coppice("trace", "model.py:bare", "--input", "4x3x9x9", "--json").json["inputs"] == {"x": [4, 3, 9, 9]}
    assert coppice("trace", "model:build", "--input", "x=4x3x9x9", "--json").json["inputs"] == {"x": [4, 3, 9, 9]}
    assert coppice("trace", "model.py:network", "--input", "4x3x9x9", "--summary").code == 0


# ---- explain -------------------------------------------------------------------------------------------------------


def test_explain_lists_families_and_frozen_axes(coppice: Coppice) -> None:
    shown = coppice("explain", "model.py:build")
    assert shown.code == 0
    assert "Net: 2 families" in shown.out
    assert [line.split()[:2] for line in shown.out.splitlines() if line.startswith("conv")] == [
        ["conv1", "8"],
        ["conv2", "8"],
    ]
    assert "out.weight[out]" in shown.out
    assert "remedy: " in shown.out


def test_explain_all_has_a_line_for_every_axis(coppice: Coppice) -> None:
    shown = coppice("explain", "model.py:build", "--all")
    axes = [line.split()[0] for line in shown.out.splitlines() if "model.py:" in line and "[" in line.split()[0]]
    assert len(axes) == 2 * 4 + 2 + 5  # two convolutions, a linear layer, five vectors


def test_explain_as_json_and_with_ignored_layers(coppice: Coppice) -> None:
    data = coppice("explain", "model.py:build", "--ignore", "conv1", "--json").json
    assert [family["name"] for family in data["families"]] == ["conv2"]
    ignored = [axis for axis in data["axes"] if "ignored on request (conv1)" in axis["reason"]]
    assert {axis["tensor"] for axis in ignored} >= {"conv1.weight", "conv1.bias"}
    assert all("`ignore`" in axis["remedy"] for axis in ignored)


def test_explain_of_a_model_that_nothing_can_leave(coppice: Coppice, examples: Path) -> None:
    shown = coppice("explain", f"{examples / 'softmax.py'}:build")
    assert shown.code == 0
    assert "nothing can leave" in shown.out
    assert "compared with the others" in shown.out
    assert "softmax.py:" in shown.out
    assert "family" not in shown.out.split("what stays")[0].replace("a family appears", "")


def test_explain_draws_a_picture(coppice: Coppice, tmp_path: Path) -> None:
    shown = coppice("explain", "model.py:build", "--svg", "net.svg")
    assert shown.code == 0
    assert shown.out.splitlines()[-1] == "written to net.svg"
    assert (tmp_path / "net.svg").read_text().startswith("<svg ")
    data = coppice("explain", "model.py:build", "--svg", "net.svg", "--json").json
    assert data["svg"] == "net.svg"
    assert coppice("explain", "model.py:build", "--svg", "model.py/net.svg").code == 2


# ---- compile -------------------------------------------------------------------------------------------------------


def test_compile_saves_a_subnet_that_loads(coppice: Coppice, tmp_path: Path) -> None:
    shown = coppice("compile", "model.py:build", "--budget", "macs=50%", "--budget", "params=0.6", "--out", "result")
    assert shown.code == 0
    assert "module: your class Net" in shown.out
    assert "equivalence: error" in shown.out
    files = ["compile.yaml", "graph.json", "receipt.json", "weights.safetensors"]
    assert sorted(p.name for p in (tmp_path / "result").iterdir()) == files
    subnet = package.load(tmp_path / "result")
    costs = subnet.receipt["costs"]
    assert costs["macs"]["after"] <= 0.5 * costs["macs"]["before"]
    assert costs["params"]["after"] <= 0.6 * costs["params"]["before"]
    assert subnet(torch.randn(5, 3, 8, 8)).shape == (5, 4)


def test_compile_as_json_with_onnx(coppice: Coppice, tmp_path: Path) -> None:
    shown = coppice("compile", "model.py:build", "--budget", "macs=50%", "--out", "result", "--onnx", "--json")
    assert shown.code == 0
    data = shown.json
    assert "model.onnx" in data["files"]
    assert data["onnx"]["checked"]["error"] < 1e-4
    assert data["module"]["kind"] == "user"
    assert set(data["widths"]) == {"conv1", "conv2"}
    receipt = json.loads((tmp_path / "result" / "receipt.json").read_text())
    assert receipt["onnx"] == data["onnx"]
    assert receipt["costs"] == data["costs"]


def test_the_effective_config_makes_the_same_subnet_again(coppice: Coppice, tmp_path: Path) -> None:
    options = ("--score", "random", "--seed", "5", "--round-to", "2", "--ignore", "conv2")
    assert coppice("compile", "model.py:build", "--budget", "macs=60%", "--out", "one", *options).code == 0
    assert coppice("compile", "--config", "one/compile.yaml", "--out", "two").code == 0
    one, two = (json.loads((tmp_path / name / "receipt.json").read_text()) for name in ("one", "two"))
    assert one["config"] == two["config"]
    assert one["weights_sha256"] == two["weights_sha256"]
    assert one["widths"]["conv1"][1] % 2 == 0
    settings = yaml.safe_load((tmp_path / "two" / "compile.yaml").read_text())
    assert settings["seed"] == 5
    assert settings["ignore"] == ["conv2"]


def test_an_older_subnet_is_replaced(coppice: Coppice, tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    for budget in ("macs=60%", "macs=40%"):
        assert coppice("compile", "model.py:build", "--budget", budget, "--out", "result").code == 0
    costs = package.load(tmp_path / "result").receipt["costs"]["macs"]
    assert costs["after"] <= 0.4 * costs["before"]


def test_compile_says_where_it_writes_a_graph_module(coppice: Coppice, tmp_path: Path) -> None:
    (tmp_path / "fixed.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Fixed(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.width = nn.Linear(4, 8), nn.Linear(8, 2), 'eight'\n"
        "    def forward(self, x):\n"
        "        return self.b(torch.relu(self.a(x)).reshape(-1, len(self.width) + 3))\n"
        "def build():\n    return Fixed(), torch.randn(2, 4)\n"
    )
    shown = coppice("compile", "fixed.py:build", "--budget", "params=60%", "--out", "result")
    assert shown.code == 0
    assert "module: a GraphModule, because Fixed does not run at the new sizes" in shown.out


def test_the_examples_compile(coppice: Coppice, examples: Path) -> None:
    for name, kinds in {"resnet": 9, "vit": 13}.items():
        data = coppice("compile", f"{examples / name}.py:build", "--budget", "macs=50%", "--out", name, "--json").json
        assert data["costs"]["macs"]["after"] <= 0.5 * data["costs"]["macs"]["before"]
        assert data["equivalence"]["error"] < 1e-9
        assert data["module"]["kind"] == "user"
        assert len(data["widths"]) == kinds


# ---- demo, bench, doctor -------------------------------------------------------------------------------------------

FULL = {"accuracy": 0.98, "params": 1000, "macs": 5000, "bytes": 4000, "latency_us": 40.0, "error": None}
SMALL = {"accuracy": 0.97, "params": 400, "macs": 1500, "bytes": 1600, "latency_us": 30.0, "error": 1e-16}
ROWS: list[dict[str, Any]] = [{"model": "full model", **FULL}, {"model": "trained once", **SMALL}]


def test_demo_prints_its_table(coppice: Coppice, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_demo(out: Path, *, progress: Any, seed: int, epochs: int) -> dict[str, Any]:
        progress("train", 0.5)
        assert (str(out), seed, epochs) == ("there", 3, 2)
        return {"rows": ROWS, "onnxruntime_accuracy": 0.97, "seconds": 1.0, "files": ["subnet/"], "macs_achieved": 0.3}

    monkeypatch.setattr("coppice.api.demo.run_demo", run_demo)
    options = ("--out", "there", "--seed", "3", "--epochs", "2")
    shown = coppice("demo", *options)
    assert shown.code == 0
    assert "trained once" in shown.out
    assert "30.0%" in shown.out
    assert "train" in shown.err
    assert coppice("demo", *options, "--json").json["rows"] == ROWS


def test_bench_measures_a_given_shape(coppice: Coppice, tmp_path: Path) -> None:
    options = ("--shapes", "16x16x16", "--repetitions", "1", "--sparsity", "0.5")
    shown = coppice("bench", "kernels", *options, "--out", "report.json")
    assert shown.code == 0
    assert "torch/dense/fp32" in shown.out
    assert "peaks in GFLOP/s: generic" in shown.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["context"]["repetitions"] == 1
    assert {m["name"].split("/")[1] for m in report["benchmarks"]} == {"16x16x16"}
    shown = coppice("bench", *options, "--kernels", "scipy/*", "--baseline", "scipy/csr/fp32", "--json")
    assert shown.json["context"]["baseline"] == "scipy/csr/fp32"
    assert len({m["run_name"] for m in shown.json["benchmarks"]}) == 1


def test_bench_draws_and_compares(coppice: Coppice, tmp_path: Path) -> None:
    options = (
        "--shapes",
        "8x4x6:k3s2",
        "--repetitions",
        "6",
        "--sparsity",
        "0.5",
        "--kernels",
        "coppice/best/csr/fp32",
    )
    assert coppice("bench", *options, "--out", "old.json", "--plot", "roof.html").code == 0
    assert "<html>" in (tmp_path / "roof.html").read_text()
    shown = coppice("bench", "--compare", "old.json", "old.json", "--fail-below", "1")
    assert shown.code == 0
    assert "geometric mean: 1.000 times as fast" in shown.out
    report = json.loads((tmp_path / "old.json").read_text())
    for row in report["benchmarks"]:
        row["speedup"] = row.get("speedup", 1) / 100
    (tmp_path / "new.json").write_text(json.dumps(report))
    shown = coppice("bench", "--compare", "old.json", "new.json", "--fail-below", "0.5", "--json")
    assert shown.code == 1
    assert [name.split("/")[-1] for name in shown.json["slower"]] == ["fp32"]
    assert coppice("bench", "--compare", "old.json", "new.json").code == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["kernel"], "'kernels'"),
        (["--shapes", "mobilenet"], "mobilenet_v1"),
        (["--shapes", "0x4x4"], "a size is zero"),
        (["--sparsity", "1.5"], "--sparsity"),
        (["--kernels", "mkl"], "nothing is called 'mkl'"),
        (["--baseline", "mkl"], "there is no 'mkl'"),
        (["--plot", "roof.svg"], ".png or .html"),
        (["--fail-below", "0.9"], "--compare"),
        (["--compare", "a.json", "b.json"], "a.json: it cannot be read"),
    ],
)
def test_bench_refuses_what_it_cannot_measure(coppice: Coppice, args: list[str], said: str) -> None:
    shown = coppice("bench", *args)
    assert shown.code == 2
    assert said in shown.err


def test_doctor_tries_everything(coppice: Coppice) -> None:
    data = coppice("doctor", "--json").json
    states = {check["name"]: check["state"] for check in data["checks"]}
    assert {"torch", "onnxruntime", "kernel library", "kernel result", "compiler"} <= set(states)
    assert states["compiler"] == states["kernel result"] == "ok"
    assert data["broken"] == []
    assert data["coppice"] == package.__version__
    shown = coppice("doctor")
    assert shown.code == 0
    assert "everything that is needed works" in shown.out


def test_doctor_finds_what_is_broken(coppice: Coppice, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("torn")

    monkeypatch.setattr("coppice.api.compress.compress", fail)
    monkeypatch.setattr("coppice.kernels.matmul", lambda *_, **__: torch.zeros(24, 40).numpy())
    shown = coppice("doctor")
    assert shown.code == 1
    assert "RuntimeError: torn" in shown.out
    assert "broken: kernel result, compiler" in shown.out
    assert coppice("doctor", "--json").json["broken"] == ["kernel result", "compiler"]
