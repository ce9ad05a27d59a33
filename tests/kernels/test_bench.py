"""The benchmark: it measures what it says, on the shapes that it says, and gives nothing of the machine away."""

from __future__ import annotations

import json
import platform

import numpy as np
import pytest
import torch

from coppice import kernels
from coppice.kernels import bench
from coppice.kernels.bench import Shape, load_shapes, run_bench

SMALL = Shape("test", "layer", 16, 24, 33, 1)


def test_shapes() -> None:
    shapes = load_shapes()
    assert len({(shape.model, shape.layer) for shape in shapes}) == len(shapes)
    assert {"mobilenet_v1", "resnet50", "vit_s", "vit_b", "bert_base", "ds_cnn", "resnet8"} <= {s.model for s in shapes}
    assert all(min(s.rows, s.cols, s.pixels, s.count) >= 1 for s in shapes)
    assert [s.model for s in load_shapes(["ds_cnn"])] == ["ds_cnn"] * 2
    with pytest.raises(kernels.KernelError, match="no 'alexnet'"):
        load_shapes(["alexnet"])


def test_mobilenet_v1_macs() -> None:
    """The pointwise and linear MACs of MobileNetV1-224 (Howard et al. 2017, table 2: 94.9 % and 0.2 % of 569 M)."""
    macs = sum(s.rows * s.cols * s.pixels * s.count for s in load_shapes(["mobilenet_v1"]))
    assert macs / 569e6 == pytest.approx(0.951, abs=0.003)


def test_report() -> None:
    threads = torch.get_num_threads()
    steps: list[tuple[int, int]] = []
    report = run_bench(
        [SMALL], (0.5, 0.9), repetitions=2, progress=lambda done, total, text: steps.append((done, total))
    )
    assert steps == [(0, 2), (1, 2)]
    assert torch.get_num_threads() == threads
    ours = [
        f"coppice {variant.name}"
        for variant in kernels.variants()
        if variant.primitive == "matmul" and variant.available
    ]
    expected = [bench.BASELINE, *ours, "torch csr", "scipy csr"]
    assert [m.kernel for m in report.measurements] == expected * 2
    for m in report.measurements:
        assert m.speedup_p10 <= m.speedup <= m.speedup_p90
        assert m.microseconds > 0
        entries = 384 if m.kernel == bench.BASELINE else {0.5: 192, 0.9: 38}[m.sparsity]  # 346 of 384 are 90 % zeros
        assert m.gflops == pytest.approx(2e-3 * entries * SMALL.pixels / m.microseconds)
    baseline = [m for m in report.measurements if m.kernel == bench.BASELINE]
    assert all(m.speedup == m.speedup_p10 == m.speedup_p90 == 1 for m in baseline)
    rows = report.rows()
    assert rows[0]["shape"] == "16x24x33"
    assert list(rows[0]) == list(rows[-1])


def test_json_is_complete_and_anonymous() -> None:
    text = run_bench([SMALL], (0.9,), repetitions=1).to_json()
    report = json.loads(text)
    assert report["format"] == "coppice-bench/1"
    assert report["threads"] == report["repetitions"] == 1
    assert report["baseline"] == bench.BASELINE
    assert set(report["versions"]) == {"torch", "scipy", "numba", "numpy"}
    assert report["machine"]["cpu"]
    assert report["cpu_share"] > 0
    assert report["machine"]["isa"] == kernels.isa()
    assert report["measurements"][0]["shape"]["layer"] == "layer"
    if platform.node():
        assert platform.node() not in text


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = bench._calls

    def wrong(weight: bench.Array, x: bench.Array) -> dict[str, bench.Call]:
        calls = original(weight, x)
        calls["scipy csr"] = lambda: np.asarray(weight @ x + np.float32(1))
        return calls

    monkeypatch.setattr(bench, "_calls", wrong)
    with pytest.raises(kernels.KernelError, match="scipy csr: wrong result"):
        run_bench([SMALL], (0.5,), repetitions=1)


def test_arguments() -> None:
    with pytest.raises(kernels.KernelError, match="repetitions"):
        run_bench([SMALL], repetitions=0)
    with pytest.raises(kernels.KernelError, match="sparsities"):
        run_bench([SMALL], (90,))
