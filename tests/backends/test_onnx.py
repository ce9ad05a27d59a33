"""ONNX out: what ONNX Runtime computes is what the module computes, at any batch; and a failure leaves no file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from coppice import EquivalenceError, Subnet, UnsupportedError, load
from coppice.backends.onnx import export as backend
from zoo import MODELS
from zoo.case import seeded
from zoo.resnet import BasicBlock, ResNet
from zoo.vit import FusedAttention, ViT

Cut = Callable[..., Subnet]
Made = tuple[nn.Module, Callable[[int], dict[str, Any] | tuple[Any, ...]]]


def images(*size: int) -> Callable[[int], tuple[Tensor]]:
    return lambda batch: (torch.randn(batch, *size),)


class Several(nn.Module):
    """Two inputs by name, results in a dict, one of them whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, *, shift: Tensor) -> dict[str, Tensor]:
        y = self.b(torch.relu(self.a(x + shift)))
        return {"best": y.argmax(1), "logits": y}


MODELS_TO_EXPORT: dict[str, Callable[[], Made]] = {
    "digits": lambda: (MODELS["digits"].build(), images(1, 8, 8)),
    "padded resnet": lambda: (
        seeded(lambda: ResNet(BasicBlock, (1, 1), base=8, kind="pad"))(),
        images(3, 16, 16),
    ),
    "vit": lambda: (
        seeded(lambda: ViT(FusedAttention, side=16, dim=16, depth=1))(),
        images(3, 16, 16),
    ),
    "bert": lambda: (MODELS["bert"].build(), lambda batch: MODELS["bert"].args(batch)[0]),
    "several": lambda: (Several(), lambda batch: {"x": torch.randn(batch, 6), "shift": torch.randn(batch, 6)}),
}


def run(path: Path, inputs: dict[str, Any] | tuple[Any, ...]) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = zip(session.get_inputs(), tree_leaves(inputs), strict=True)
    return list(session.run(None, {wanted.name: value.numpy() for wanted, value in feed}))


@pytest.mark.parametrize("make", MODELS_TO_EXPORT.values(), ids=MODELS_TO_EXPORT.keys())
def test_the_runtime_computes_what_the_subnet_computes(make: Callable[[], Made], cut: Cut, tmp_path: Path) -> None:
    model, inputs = make()
    example = inputs(2)
    subnet = cut(model, **example) if isinstance(example, dict) else cut(model, *example)
    path = subnet.export_onnx(tmp_path / "model.onnx")
    assert path == tmp_path / "model.onnx"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]

    stored = onnx.load(str(path))
    assert {entry.domain: entry.version for entry in stored.opset_import} == {"": backend.OPSET}
    checked = subnet.receipt["onnx"]["checked"]
    assert subnet.receipt["onnx"]["opset"] == backend.OPSET
    assert checked["runtime"].startswith("onnxruntime ")
    assert checked["error"] < 1e-4

    for batch in (1, 5):
        given = inputs(batch)
        with torch.no_grad():
            result = subnet(**given) if isinstance(given, dict) else subnet(*given)
        for found, wanted in zip(run(path, given), tree_leaves(result), strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-4)


@pytest.fixture
def subnet(cut: Cut) -> Subnet:
    torch.manual_seed(0)
    return cut(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), torch.randn(1, 6))


def test_the_batch_is_dynamic_even_from_an_example_of_one(subnet: Subnet, tmp_path: Path) -> None:
    path = subnet.export_onnx(tmp_path / "model.onnx")
    graph = onnx.load(str(path)).graph
    for value in (*graph.input, *graph.output):
        first = value.type.tensor_type.shape.dim[0]
        assert first.dim_param
        assert not first.dim_value
    x = torch.randn(7, 6)
    np.testing.assert_allclose(run(path, (x,))[0], subnet(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_what_is_exported_is_the_module_as_trained_since(subnet: Subnet, tmp_path: Path) -> None:
    with torch.no_grad():
        for p in subnet.module.parameters():
            p.add_(0.1)
    x = torch.randn(3, 6)
    found = run(subnet.export_onnx(tmp_path / "model.onnx"), (x,))[0]
    np.testing.assert_allclose(found, subnet(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_exporting_leaves_module_and_stdout_alone(
    subnet: Subnet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: tensor.clone() for name, tensor in subnet.module.state_dict().items()}
    subnet.export_onnx(tmp_path / "model.onnx")
    assert capfd.readouterr().out == ""
    assert all(torch.equal(tensor, before[name]) for name, tensor in subnet.module.state_dict().items())


def test_an_older_file_is_replaced_and_without_the_check_the_receipt_says_so(subnet: Subnet, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"old")
    subnet.export_onnx(path, check=False)
    onnx.checker.check_model(str(path))
    assert subnet.receipt["onnx"] == {"opset": backend.OPSET, "checked": None}


# ---- failures ------------------------------------------------------------------------------------------------------


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken on purpose\nwith details")


def test_where_the_exporter_refuses_no_file_is_left(
    subnet: Subnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(UnsupportedError, match=r"refuses the model: broken on purpose\n") as caught:
        subnet.export_onnx(tmp_path / "model.onnx")
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []
    assert "onnx" not in subnet.receipt


def test_where_the_checker_refuses_no_file_is_left(
    subnet: Subnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> None:
        raise onnx.checker.ValidationError("not a valid model")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(UnsupportedError, match="not a valid model"):
        subnet.export_onnx(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    assert "onnx" not in subnet.receipt


def test_a_crash_while_writing_leaves_the_older_file(
    subnet: Subnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def crash(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="no space"):
        subnet.export_onnx(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_runtime_that_disagrees_is_an_error(subnet: Subnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "TOLERANCE", -1.0)
    with pytest.raises(EquivalenceError, match="differs from torch") as caught:
        subnet.export_onnx(tmp_path / "model.onnx")
    assert caught.value.exit_code == 5
    assert caught.value.error >= 0
    assert subnet.receipt["onnx"]["checked"] is None


def test_a_loaded_subnet_says_what_exporting_needs(subnet: Subnet, tmp_path: Path) -> None:
    loaded = load(subnet.save(tmp_path / "subnet"))
    with pytest.raises(UnsupportedError, match="needs example inputs"):
        loaded.export_onnx(tmp_path / "model.onnx")
    loaded.graph.inputs = ((torch.randn(2, 6),), {})
    x = torch.randn(3, 6)
    found = run(loaded.export_onnx(tmp_path / "model.onnx"), (x,))[0]
    np.testing.assert_allclose(found, subnet(x).detach().numpy(), rtol=1e-4, atol=1e-5)
