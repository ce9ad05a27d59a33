"""The demo at a tenth of its epochs: the same files, the same exact budget; only the accuracy is less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from coppice import load
from coppice.api.demo import accuracy as accuracy_of
from coppice.api.demo import digits, run_demo


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def told() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def summary(out: Path, told: list[tuple[str, float]]) -> dict[str, Any]:
    threads = torch.get_num_threads()
    result = run_demo(out, progress=lambda stage, share: told.append((stage, share)), epochs=4)
    assert torch.get_num_threads() == threads
    return result


def test_it_leaves_a_subnet_an_onnx_model_and_a_summary(summary: dict[str, Any], out: Path) -> None:
    assert {p.name for p in out.iterdir()} == {"subnet", "model.onnx", "summary.json"}
    assert summary["files"] == ["subnet/", "model.onnx", "summary.json"]
    assert json.loads((out / "summary.json").read_text()) == summary
    onnx.checker.check_model(str(out / "model.onnx"))


def test_the_budget_is_met_from_just_below(summary: dict[str, Any]) -> None:
    assert summary["budget"] == {"macs": "30%"}
    assert 0.297 <= summary["macs_achieved"] <= 0.30
    full, trained, one_shot = summary["rows"]
    assert trained["macs"] == pytest.approx(summary["macs_achieved"] * full["macs"])
    assert 0.297 * full["macs"] <= one_shot["macs"] <= 0.30 * full["macs"]


def test_the_rows_are_those_of_the_table(summary: dict[str, Any]) -> None:
    rows = summary["rows"]
    assert [row["model"] for row in rows] == ["full model", "trained once", "one-shot"]
    assert rows[0]["error"] is None
    assert all(0 <= row["error"] < 1e-9 for row in rows[1:])
    assert all(row["latency_us"] > 0 for row in rows)
    for metric in ("params", "macs", "bytes"):
        assert all(0 < row[metric] < rows[0][metric] for row in rows[1:])


def test_even_four_epochs_learn(summary: dict[str, Any]) -> None:
    assert all(row["accuracy"] > 0.6 for row in summary["rows"])


def test_the_saved_subnet_is_the_one_in_the_table(summary: dict[str, Any], out: Path) -> None:
    subnet = load(out / "subnet")
    row = summary["rows"][1]
    assert accuracy_of(subnet.module, digits()) == row["accuracy"] == pytest.approx(summary["onnxruntime_accuracy"])
    assert sum(p.numel() for p in subnet.module.parameters()) == row["params"]
    assert subnet.receipt["costs"]["macs"]["after"] == row["macs"]


def test_progress_is_told_by_stage_up_to_the_end(summary: dict[str, Any], told: list[tuple[str, float]]) -> None:
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages == [
        "train the full model",
        "train once with DHSPG",
        "fine-tune the one-shot subnet",
        "export and measure",
    ]
    for stage in stages:
        shares = [share for name, share in told if name == stage]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
