"""A subnet on disk: what comes back is what was saved, whole or not at all, and needs no class of the user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from coppice import Subnet, UnsupportedError, UsageError, build_space, extract, load, trace
from coppice.passes.extract.check import difference
from zoo import MODELS

Inputs = Callable[[int], dict[str, Any]]


def cut(model: nn.Module, inputs: Any, ratio: float = 0.5) -> Subnet:
    space = build_space(trace(model.eval(), inputs))
    return extract(space, space.uniform(ratio))


def cut_zoo(name: str) -> tuple[Subnet, tuple[Any, ...], dict[str, Any]]:
    case = MODELS[name]
    args, kwargs = case.args(3)
    return cut(case.build(), kwargs or args), args, kwargs


def same(one: Any, two: Any) -> bool:
    return difference(one, two) == 0


# ---- there and back ------------------------------------------------------------------------------------------------


def test_a_folder_holds_three_files_and_no_code(tmp_path: Path) -> None:
    subnet, _, _ = cut_zoo("digits")
    assert subnet.save(str(tmp_path / "a" / "subnet")) == tmp_path / "a" / "subnet"
    found = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "a" / "subnet").iterdir()}
    assert found == {"weights.safetensors": 0o644, "graph.json": 0o644, "receipt.json": 0o644}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["subnet"]


@pytest.mark.parametrize("name", ["digits", "shufflenet_v2", "vit_mha", "llama_tied"])
def test_what_is_loaded_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    subnet, args, kwargs = cut_zoo(name)
    loaded = load(subnet.save(tmp_path / "subnet"))
    with torch.no_grad():
        expected = subnet.graph.run(*args, **kwargs)
        assert same(loaded(*args, **kwargs), expected)
        assert difference(subnet(*args, **kwargs), expected) < 1e-5
    assert loaded.receipt == json.loads(json.dumps(subnet.receipt))
    assert not loaded.module.training


def test_awkward_parts_come_back(awkward: nn.Module, inputs: Inputs, tmp_path: Path) -> None:
    subnet = cut(awkward, inputs(3))
    loaded = load(subnet.save(tmp_path / "subnet"))
    for batch in (1, 4):
        given = inputs(batch)
        with torch.no_grad():
            wanted, found = subnet(**given), loaded(**given)
        assert difference(wanted, found) < 1e-6
        assert isinstance(found, dict)
        assert isinstance(found["pair"], tuple)
        assert isinstance(found["pair"][1], list)
        assert found["pair"][1][1] is None
    assert {n: p.requires_grad for n, p in loaded.module.named_parameters()} == {
        n: p.requires_grad for n, p in awkward.named_parameters()
    }
    assert loaded.graph.aliases == {"again.weight": "middle.weight"}
    assert loaded.module.get_parameter("middle.weight").shape == (6, 6)
    assert {n for n, _ in loaded.module.named_parameters()} == {n for n, _ in awkward.named_parameters()}
    assert {n for n, _ in loaded.module.named_buffers()} >= {"scale", "steps", "table"}
    assert loaded.module.get_buffer("steps").dtype == torch.int64
    with safe_open(str(tmp_path / "subnet" / "weights.safetensors"), framework="pt") as file:
        assert "again.weight" not in file.keys()  # noqa: SIM118 (it is no dict)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).to(dtype)
    subnet = cut(model, torch.randn(2, 6, dtype=dtype))
    loaded = load(subnet.save(tmp_path / "subnet"))
    assert {p.dtype for p in loaded.module.parameters()} == {dtype}
    x = torch.randn(3, 6, dtype=dtype)
    with torch.no_grad():
        assert same(loaded(x), subnet.graph.run(x))


@pytest.mark.parametrize("name", ["digits", "shufflenet_v2"])
def test_what_is_saved_is_the_module_as_trained_since(name: str, tmp_path: Path) -> None:
    subnet, args, _ = cut_zoo(name)
    with torch.no_grad():
        for p in subnet.module.parameters():
            p.mul_(1.1)
        loaded = load(subnet.save(tmp_path / "subnet"))
        assert difference(subnet(*args), loaded(*args)) < 1e-5


def test_a_loaded_subnet_saves_trains_and_loads_again(tmp_path: Path) -> None:
    subnet, args, _ = cut_zoo("shufflenet_v2")
    loaded = load(subnet.save(tmp_path / "one"))
    optimizer = torch.optim.SGD(loaded.module.parameters(), lr=0.01)
    torch.autograd.backward(loaded(*args).square().mean())
    optimizer.step()
    again = load(loaded.save(tmp_path / "two"))
    with torch.no_grad():
        assert same(again(*args), loaded(*args))
        assert not same(again(*args), subnet(*args))


def test_a_module_in_double_precision_saves_as_such(tmp_path: Path) -> None:
    subnet, _, _ = cut_zoo("vit")
    subnet.module.double()
    loaded = load(subnet.save(tmp_path / "subnet"))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert loaded(x).dtype == torch.float64
        assert difference(loaded(x), subnet(x)) < 1e-12


def test_a_loaded_subnet_has_no_reference(tmp_path: Path) -> None:
    subnet, _, _ = cut_zoo("mlp")
    with pytest.raises(UnsupportedError, match="does not carry the full model") as caught:
        load(subnet.save(tmp_path / "subnet")).reference()
    assert "receipt['config']" in caught.value.remedy


def test_meta_tensors_cannot_be_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        subnet = cut(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), torch.randn(2, 6))
    with pytest.raises(UnsupportedError, match="no weights to save"):
        subnet.save(tmp_path / "subnet")
    assert list(tmp_path.iterdir()) == []


def test_another_process_loads_it_without_the_users_class(tmp_path: Path, awkward: nn.Module, inputs: Inputs) -> None:
    subnet, given = cut(awkward, inputs(3)), inputs(2)
    subnet.save(tmp_path / "subnet")
    with torch.no_grad():
        expected = subnet(**given)["main"]
    torch.save({"x": given["x"], "shift": given["extra"]["shift"]}, tmp_path / "inputs.pt")
    code = """
import json, sys, torch, coppice
subnet = coppice.load("subnet")
given = torch.load("inputs.pt", weights_only=True)
with torch.no_grad():
    result = subnet(x=given["x"], extra={"shift": given["shift"]})
assert not any(name.startswith(("zoo", "conftest", "api.")) for name in sys.modules)
print(json.dumps(result["main"].tolist()))
"""
    paths = [p for p in sys.path if p and Path(p).is_dir() and Path(p).name != "tests"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected)


# ---- whole or not at all -------------------------------------------------------------------------------------------


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def older(tmp_path: Path) -> dict[str, bytes]:
    """A subnet folder of an earlier run at ``tmp_path / "subnet"``."""
    subnet, _, _ = cut_zoo("mlp_bn")
    return contents(subnet.save(tmp_path / "subnet"))


def crash(*_: Any, **__: Any) -> Any:
    raise OSError("no space left on device")


def nth(n: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, but its n-th call fails."""
    calls = 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return crash() if calls == n else function(*args, **kwargs)

    return called


def refused(tmp_path: Path) -> dict[str, bytes]:
    """What is left after a save that crashes."""
    subnet, _, _ = cut_zoo("mlp")
    with pytest.raises(OSError, match="no space left"):
        subnet.save(tmp_path / "subnet")
    assert [p.name for p in tmp_path.iterdir() if p.name != "subnet"] == []
    return contents(tmp_path / "subnet")


@pytest.mark.parametrize("what", ["coppice.api.subnet.save_file", "json.dumps", "os.fsync", "pathlib.Path.write_text"])
def test_a_crash_while_writing_leaves_the_older_folder(
    what: str, older: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(what, crash)
    assert refused(tmp_path) == older


@pytest.mark.parametrize("call", [1, 2], ids=["moving the older one away", "moving the new one in"])
def test_a_crash_while_renaming_leaves_the_older_folder(
    call: int, older: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", nth(call, os.replace))
    assert refused(tmp_path) == older
    monkeypatch.undo()
    assert load(tmp_path / "subnet").receipt["model"] == "MLP"


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_crash_without_an_older_folder_leaves_nothing(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", nth(call, os.fsync))
    assert refused(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_an_older_subnet_is_replaced_as_a_whole(older: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "subnet" / "model.onnx").write_bytes(b"of the older one")
    subnet, _, _ = cut_zoo("mlp")
    subnet.save(tmp_path / "subnet")
    found = contents(tmp_path / "subnet")
    assert set(found) == {"weights.safetensors", "graph.json", "receipt.json"}
    assert found != older
    assert [p.name for p in tmp_path.iterdir()] == ["subnet"]


def test_a_folder_or_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    subnet, _, _ = cut_zoo("mlp")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("words")
    for name in ("thesis", "file", "file/inside"):
        with pytest.raises(UsageError, match="give a"):
            subnet.save(tmp_path / name)
    assert contents(tmp_path) == {"thesis/thesis.tex": b"years of work", "file": b"words"}
    (tmp_path / "empty").mkdir()
    assert load(subnet.save(tmp_path / "empty")).receipt["validated"]


def test_the_receipt_on_disk_proves_the_files(tmp_path: Path) -> None:
    subnet, _, _ = cut_zoo("mlp")
    path = subnet.save(tmp_path / "subnet")
    for name in ("weights.safetensors", "graph.json"):
        before = (path / name).read_bytes()
        (path / name).write_bytes(before.replace(b"0", b"1", 1))
        with pytest.raises(UsageError, match="hash is not the one in the receipt"):
            load(path)
        (path / name).write_bytes(before)
    assert isinstance(load(path)(torch.randn(2, 32)), Tensor)


# ---- into the user's class again -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "vit_mha", "llama", "convnext", "resnext", "shufflenet_v2"])
def test_a_subnet_goes_back_into_its_class(name: str, tmp_path: Path) -> None:
    subnet, _, _ = cut_zoo(name)
    model = MODELS[name].build()
    loaded = load(subnet.save(tmp_path / "subnet"), model)
    assert type(loaded.module) is type(model)
    assert loaded.module is not model
    with torch.no_grad():
        for batch in (2, 5):
            args, kwargs = MODELS[name].args(batch)
            assert difference(subnet(*args, **kwargs), loaded(*args, **kwargs)) < 1e-6
    again = load(loaded.save(tmp_path / "again"), model)
    assert type(again.module) is type(model)


def test_a_language_model_generates_after_it_was_loaded(tmp_path: Path) -> None:
    subnet, _, _ = cut_zoo("llama")
    loaded = load(subnet.save(tmp_path / "subnet"), MODELS["llama"].build())
    prompt = torch.tensor([[5, 3, 11]])
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    expected = subnet.reference().generate(prompt, **options)  # type: ignore[operator]
    assert torch.equal(loaded.module.generate(prompt, **options), expected)  # type: ignore[operator]


def test_another_class_is_refused(tmp_path: Path) -> None:
    subnet, _, _ = cut_zoo("digits")
    path = subnet.save(tmp_path / "subnet")
    with pytest.raises(UsageError, match="Linear has no "):
        load(path, torch.nn.Linear(3, 3))
    with pytest.raises(UsageError, match="model is a str"):
        load(path, "DigitsNet")  # type: ignore[arg-type]


def test_what_was_rewritten_has_no_class_to_go_back_to(tmp_path: Path) -> None:
    subnet, _, _ = cut_zoo("vit")
    path = subnet.save(tmp_path / "subnet")
    with pytest.raises(UnsupportedError, match=r"the forwards of blocks\.0\.attn"):
        load(path, MODELS["vit"].build())
    assert load(path).module is not None
