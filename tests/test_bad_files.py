"""Files that are damaged, forged, or in the way: refused with the reason, and nothing of the user's is touched."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import coppice


def subnet() -> coppice.Subnet:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    space = coppice.build_space(coppice.trace(net, torch.randn(2, 3, 8, 8)))
    return coppice.extract(space, space.uniform(0.5))


def refused(call: Callable[[], object], fact: str) -> coppice.CoppiceError:
    """``call`` raises a `UsageError` that says ``fact``."""
    with pytest.raises(coppice.UsageError) as caught:
        call()
    assert fact in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return subnet().save(tmp_path_factory.mktemp("original") / "subnet")


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A saved subnet of one's own, to damage."""
    return Path(shutil.copytree(original, tmp_path / "subnet"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 255
    path.write_bytes(data)


def seal(folder: Path) -> None:
    """Make the receipt fit the altered files, as an attacker would."""
    receipt = json.loads((folder / "receipt.json").read_text())
    for name, key in (("graph.json", "graph_sha256"), ("weights.safetensors", "weights_sha256")):
        receipt[key] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "receipt.json").write_text(json.dumps(receipt))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights flipped": (lambda f: flip(f / "weights.safetensors"), "its hash is not the one in the receipt"),
    "weights cut": (
        lambda f: (f / "weights.safetensors").write_bytes((f / "weights.safetensors").read_bytes()[:100]),
        "its hash is not the one in the receipt",
    ),
    "graph altered": (
        lambda f: (f / "graph.json").write_text((f / "graph.json").read_text().replace("relu", "tanh")),
        "its hash is not the one in the receipt",
    ),
    "no graph": (lambda f: (f / "graph.json").unlink(), "graph.json is missing"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors is missing"),
    "no receipt": (lambda f: (f / "receipt.json").unlink(), "receipt.json is missing"),
    "receipt of bytes": (lambda f: (f / "receipt.json").write_bytes(b"\xff\xfe"), "not JSON"),
    "receipt a list": (lambda f: (f / "receipt.json").write_text("[]"), "expected a JSON object"),
    "receipt nested": (lambda f: (f / "receipt.json").write_text("[" * 200_000), "not JSON"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_refused(saved: Path, damage: str) -> None:
    change, fact = DAMAGE[damage]
    change(saved)
    error = refused(lambda: coppice.load(saved), fact)
    assert str(saved) in error.place


def graph_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        data = json.loads((folder / "graph.json").read_text())
        change(data)
        (folder / "graph.json").write_text(json.dumps(data))

    return apply


def replaced(old: str, new: str) -> Callable[[Path], object]:
    return graph_json(lambda d: d.update(graph=[line.replace(old, new) for line in d["graph"]]))


def nested(depth: int) -> Any:
    data: Any = "*"
    for _ in range(depth):
        data = {"kind": "tuple", "items": [data]}
    return data


FORGED: dict[str, Any] = {
    "weights cut": (lambda f: (f / "weights.safetensors").write_bytes(b"\x08"), "not a safetensors file"),
    "weights huge header": (lambda f: (f / "weights.safetensors").write_bytes(b"\xff" * 8), "not a safetensors file"),
    "graph nested": (lambda f: (f / "graph.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000), "not JSON"),
    "format": (graph_json(lambda d: d.update(format=9)), "format 9"),
    "inputs nested": (graph_json(lambda d: d.update(inputs=nested(80))), "nested too deep"),
    "an unknown op": (replaced("aten.relu.default", "aten.reluu.default"), "no op called aten.reluu"),
    "a foreign op": (
        replaced("aten.relu.default", "os.system.default"),
        "no op called os.system",
    ),
    "a missing tensor": (replaced("'0.weight'", "'other'"), "no tensor called 'other'"),
    "text that is none": (graph_json(lambda d: d["graph"].append(" (((")), "not a graph"),
    "text nested": (replaced("aten.relu.default(", "aten.relu.default(" + "(" * 5000), "not a graph"),
    "no text": (graph_json(lambda d: d.pop("graph")), "graph"),
    "no inputs": (graph_json(lambda d: d.pop("inputs")), "inputs"),
    "text a number": (graph_json(lambda d: d.update(graph=3)), "graph"),
    "aliases a list": (graph_json(lambda d: d.update(aliases=[1])), "aliases"),
    "parameters a number": (graph_json(lambda d: d.update(parameters=3)), "parameters"),
    "more inputs": (graph_json(lambda d: d.update(inputs={"kind": "tuple", "items": ["*", "*"]})), "inputs"),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_forged_folders_are_refused(saved: Path, forgery: str) -> None:
    change, fact = FORGED[forgery]
    change(saved)
    seal(saved)
    refused(lambda: coppice.load(saved), fact)


def test_places_that_are_no_folder(tmp_path: Path) -> None:
    small = subnet()
    (tmp_path / "file").write_text("mine")
    refused(lambda: small.save(tmp_path / "file"), "there is a file of this name")
    refused(lambda: coppice.load(tmp_path / "nowhere"), "is missing")
    refused(lambda: coppice.load(tmp_path / "file"), "is missing")
    assert {p.name for p in tmp_path.iterdir()} == {"file"}
    assert (tmp_path / "file").read_text() == "mine"


def test_a_save_that_fails_leaves_the_older_subnet(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    small = coppice.load(saved)
    monkeypatch.setattr("coppice.api.subnet.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        small.save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path: Path) -> None:
    small = subnet()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("two years of work")
    refused(lambda: small.save(tmp_path / "thesis"), "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").is_file()
