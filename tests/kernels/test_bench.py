"""The benchmark: it measures what it says, on the shapes that it says, and gives nothing of the machine away."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coppice import kernels
from coppice.kernels import bench
from coppice.kernels._variants import includes, pick
from coppice.kernels.bench import (
    BenchReport,
    Peaks,
    Shape,
    compare,
    contenders,
    load_shapes,
    measure,
    measure_peaks,
    parse_shape,
    peers,
    plot,
    read_report,
    run_bench,
    select,
)
from coppice.kernels.bench.compare import Saved
from coppice.kernels.bench.contenders import ARITHMETIC, Prepared, Setting
from coppice.kernels.bench.machine import cores, this_machine
from coppice.kernels.bench.peaks import UNITS
from coppice.kernels.bench.plot import check_plot, lines
from coppice.kernels.bench.problem import Problem
from coppice.kernels.bench.statistics import LEVEL, differs, paired, unpaired

ROOT = Path(__file__).parents[2]
SMALL = Shape("test", "layer", 16, 24, 33)
FEW = ("coppice/best/csr/fp32", "coppice/best/4x1/fp16", "scipy/csr/fp32")
FLAT = Peaks({"generic": 40.0, "avx2": 100.0}, {1 << 14: 200.0, 1 << 20: 100.0, 1 << 26: 20.0})


@pytest.fixture(autouse=True)
def known_peaks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No second for the peaks in every test."""
    monkeypatch.setattr(measure, "measure_peaks", lambda threads: FLAT)


@lru_cache(maxsize=1)
def _report() -> BenchReport:
    return run_bench([SMALL], (0.5, 0.9), FEW, repetitions=3)


@pytest.fixture
def report(known_peaks: None) -> BenchReport:
    return _report()


# ---- shapes --------------------------------------------------------------------------------------------------------


def test_shapes() -> None:
    shapes = load_shapes()
    assert len({(shape.model, shape.layer) for shape in shapes}) == len(shapes)
    assert {shape.model for shape in shapes} == {
        "mobilenet_v1", "mobilenet_v2", "resnet50", "efficientnet_b0", "vit_s", "vit_b", "bert_base",
        "llama_7b_decode", "llama_7b_prefill", "ds_cnn", "resnet8",
    }  # fmt: skip
    assert all(min(s.rows, s.cols, s.pixels, s.count) >= 1 for s in shapes)
    assert any(shape.sample and shape.window for shape in shapes)
    assert [s.layer for s in load_shapes(["ds_cnn"])] == ["stem", "pointwise", "classifier"]
    with pytest.raises(kernels.KernelError, match="no 'alexnet'"):
        load_shapes(["alexnet"])


@pytest.mark.parametrize("shape", [s for s in load_shapes() if s.convolution], ids=lambda s: f"{s.model} {s.layer}")
def test_convolutions_give_as_many_pixels_as_they_say(shape: Shape) -> None:
    held = shape.convolution
    assert held is not None
    assert np.prod(held.out) == shape.pixels
    assert shape.cols % np.prod(held.kernel) == 0
    if shape.window is not None:
        assert shape.window.out(*held.size) == held.out


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        ("mobilenet_v1", 569e6 * 0.969),  # all but depthwise: Howard et al. 2017, table 2, and the stem
        ("resnet50", 4.089e9),  # torchvision's table of models
        ("llama_7b_decode", 6.738e9 - 32000 * 4096),  # a token: every parameter but the embedding's
        ("ds_cnn", 2.66e6 - 4 * 64 * 9 * 125),  # MLPerf Tiny, all but depthwise
        ("resnet8", 12.5e6),  # MLPerf Tiny
    ],
)
def test_macs_of_models(model: str, macs: float) -> None:
    found = sum(s.rows * s.cols * s.pixels * s.count for s in load_shapes([model]))
    assert found == pytest.approx(macs, rel=0.003)


def test_shapes_written_out() -> None:
    linear = parse_shape("12x34x56")
    assert linear == Shape("given", "12x34x56", 12, 34, 56)
    assert linear is not None and linear.window is None and linear.input == (34, 56) and linear.text == "12x34x56"
    convolution = parse_shape("64x32x57:k3s2")
    assert convolution is not None and convolution.window is not None
    assert (convolution.rows, convolution.cols, convolution.pixels) == (64, 32 * 9, 29 * 29)
    assert (convolution.input, convolution.text) == ((32, 57, 57), "64x288x841:3x3s2")
    pointwise = parse_shape("8x8x5:k1")
    assert pointwise is not None and pointwise.convolution is not None and pointwise.window is None
    assert parse_shape("resnet50") is None
    for text in ("0x1x1", "1x1x4:k0", "1x1x4:k1s0"):
        with pytest.raises(kernels.KernelError, match="a size is zero"):
            parse_shape(text)


# ---- the numbers that contenders are given -------------------------------------------------------------------------


@pytest.mark.parametrize("height", [1, 4, 8, 16])
def test_zeros_are_as_many_as_asked_and_in_blocks(height: int) -> None:
    matrix = Problem(Shape("test", "layer", 48, 30, 7), 0.8).matrix(height)
    assert np.mean(matrix == 0) == pytest.approx(0.8)
    blocks = (matrix != 0).reshape(-1, height, 30)
    assert np.all(blocks.all(axis=1) == blocks.any(axis=1))
    assert np.array_equal(matrix, Problem(Shape("test", "layer", 48, 30, 7), 0.8).matrix(height))


@pytest.mark.parametrize("text", ["16x24x33", "20x6x9:k3s2", "20x6x8:k1", "20x6x9:k1s2", "30x40x1", "70x320x1"])
def test_every_contender_is_right_on_every_kind_of_shape(text: str) -> None:
    shape = parse_shape(text)
    assert shape is not None
    problem, seen = Problem(shape, 0.7), 0
    for row in contenders():
        if not row.suits(shape):
            continue
        made = row.prepare(problem, Setting(1, None))
        made.call()
        seen += 1
        result = np.asarray(made.result())
        assert problem.error(result, row.height, row.weight, row.activation, row.arithmetic, made.rounding) <= 1, (
            row.name
        )
        assert made.traffic > shape.pixels * shape.rows
    assert seen >= 60


def test_the_bound_is_not_a_formality() -> None:
    problem = Problem(SMALL, 0.5)
    exact = problem.exact(1)[0]
    assert problem.error(exact, 1, "float32", "float32") == 0
    assert problem.error(exact.astype(np.float16), 1, "float32", "float32") > 1
    assert problem.error(exact.astype(np.float16), 1, "float16", "float16") < 1
    off = exact.copy()
    off[3, 4] *= 1.05
    assert problem.error(off, 1, "float16", "float16") > 1
    off[3, 4] = np.nan
    assert problem.error(off, 1, "int8", "int8") == np.inf


# ---- who takes part ------------------------------------------------------------------------------------------------


def test_names_and_patterns() -> None:
    every = [row.name for row in contenders()]
    assert every[0] == bench.BASELINE
    assert len(set(every)) == len(every)
    variants = [v.name for v in kernels.variants() if v.available and v.primitive == "matmul"]
    ours = [name for name in every if name.startswith("coppice/")]
    usable = [v for v in kernels.variants() if v.available and v.primitive == "matmul"]
    given_up = [
        kind for v in usable for kind, (*_, least) in ARITHMETIC.items() if any(includes(v.isa, isa) for isa in least)
    ]
    assert sum("@" in name for name in ours) == sum(7 if kind == "int8" else 5 for kind in given_up)
    assert sum("/code/" in name for name in ours) == 12 * sum(name.startswith(("avx512", "amx")) for name in variants)
    plain = [name for name in ours if "@" not in name and "/code/" not in name]
    assert len(plain) == len(variants) * ((5 + 2) * 3 * 4 + 1)
    found = [row.name for row in select(["coppice/best/4x1/*", "scipy/*"], bench.BASELINE)]
    assert found[0] == bench.BASELINE
    assert sum("@" not in name for name in found) == 1 + 12 + 1
    assert select(["torch/dense/bf16"], "scipy/csr/fp32")[0].name == "scipy/csr/fp32"
    assert {row.name for row in select(bench.TYPICAL, bench.BASELINE)} <= set(every)
    with pytest.raises(kernels.KernelError, match="nothing is called 'mkl'"):
        select(["mkl"], bench.BASELINE)
    with pytest.raises(kernels.KernelError, match="no 'mkl'"):
        select(["*"], "mkl")


# ---- the report ----------------------------------------------------------------------------------------------------


def test_report(report: BenchReport) -> None:
    best = pick("matmul", None).name
    expected = [bench.BASELINE, f"coppice/{best}/csr/fp32", f"coppice/{best}/4x1/fp16", "scipy/csr/fp32"]
    assert [m.kernel for m in report.measurements] == expected * 2
    assert (report.clock, report.threads, report.repetitions) == ("cpu", 1, 3)
    for m in report.measurements:
        p10, median, p90 = m.speedup
        assert 0 < p10 <= median <= p90
        assert len(m.wall) == len(m.cpu) == len(m.ratios) == 3
        entries = 384 if "dense" in m.kernel else {0.5: 192, 0.9: 38}[m.sparsity]  # 346 of 384 are 90 % zeros
        if "4x1" in m.kernel and m.sparsity == 0.9:
            entries = 40  # 86 of 96 blocks
        assert m.operations == 2 * entries * SMALL.pixels
        assert m.gflops == pytest.approx(1e-3 * m.operations / m.microseconds)
        assert m.gbytes == pytest.approx(m.gflops / m.intensity)
        assert m.roof == FLAT.roof(None if "coppice" not in m.kernel else best, m.intensity, m.traffic)
        assert m.peak_share <= m.roof_share
    baseline = [m for m in report.measurements if m.kernel == bench.BASELINE]
    assert all(m.speedup == (1, 1, 1) and m.p_value == 1 for m in baseline)
    rows = report.rows()
    assert rows[0]["shape"] == "16x24x33"
    assert list(rows[0]) == list(rows[-1])


def test_timing_leaves_the_process_as_it_was() -> None:
    threads, steps = torch.get_num_threads(), []
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    run_bench([SMALL], (0.5, 0.9), FEW, repetitions=1, progress=lambda *step: steps.append(step[:2]))
    assert steps == [(0, 2), (0, 2), (1, 2)]  # the first is the machine's peaks
    assert torch.get_num_threads() == threads
    assert allowed is None or os.sched_getaffinity(0) == allowed


def test_json_is_google_benchmarks_complete_and_anonymous(report: BenchReport) -> None:
    text = report.to_json()
    data = json.loads(text)
    assert data == json.loads(json.dumps(report.google()))
    context = data["context"]
    assert context["threads"] == 1
    assert context["baseline"] == bench.BASELINE
    assert {"torch", "scipy", "numba", "numpy"} <= set(context["versions"])
    assert context["cpu"]
    assert context["cpu_share"] > 0
    assert context["isa"] == kernels.isa()
    assert "Wilcoxon" in context["test"]
    rows = data["benchmarks"]
    assert len(rows) == 8 * (3 + 4)
    name = f"test/layer/16x24x33/zeros:0.5/{bench.BASELINE}"
    first = [row for row in rows if row["run_name"] == name]
    assert [row["name"] for row in first] == [name] * 3 + [f"{name}_{a}" for a in ("mean", "median", "stddev", "cv")]
    assert [row["repetition_index"] for row in first[:3]] == [0, 1, 2]
    for row in rows:
        assert {"run_type", "repetitions", "threads", "iterations", "real_time", "cpu_time", "time_unit"} <= set(row)
    median = first[4]
    assert median["cpu_time"] == pytest.approx(np.median([row["cpu_time"] for row in first[:3]]))
    assert {"gflops", "gbytes", "peak_share", "roof_share", "speedup_p10", "p_value"} <= set(median)
    assert str(Path.home()) not in text
    assert not platform.node() or re.search(rf"\b{re.escape(platform.node())}\b", text) is None


def test_threads_share_a_pool_and_are_timed_on_the_wall() -> None:
    best = select(["coppice/best/csr/fp32"], bench.BASELINE)[1].name
    found = run_bench([SMALL], (0.5,), [best], repetitions=2, threads=2)
    assert (found.threads, found.clock) == (2, "wall")
    assert [m.kernel for m in found.measurements] == [bench.BASELINE, best]
    assert found.measurements[1].microseconds == pytest.approx(np.median(found.measurements[1].wall) * 1e6)


# ---- what must not be timed ----------------------------------------------------------------------------------------


def _spoiled(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Prepared], Prepared]) -> None:
    def spoilt_row(row: bench.Contender) -> bench.Contender:
        return replace(row, prepare=lambda problem, setting: change(row.prepare(problem, setting)))

    def spoilt(patterns: Any, baseline: str) -> list[bench.Contender]:
        return [spoilt_row(row) if row.name == name else row for row in select(patterns, baseline)]

    monkeypatch.setattr(measure, "select", spoilt)


def test_a_wrong_peer_is_left_out_and_a_wrong_kernel_or_baseline_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(made: Prepared) -> Prepared:
        return replace(made, result=lambda: made.result() * 1.5)

    _spoiled(monkeypatch, "scipy/csr/fp32", wrong)
    report = run_bench([SMALL], (0.5,), FEW, repetitions=1)
    assert "scipy/csr/fp32" not in {m.kernel for m in report.measurements}
    assert "wrong result" in report.left_out["scipy/csr/fp32"]
    for name in (bench.BASELINE, select(FEW, bench.BASELINE)[1].name):
        _spoiled(monkeypatch, name, wrong)
        with pytest.raises(kernels.KernelError, match=f"{name}: wrong result"):
            run_bench([SMALL], (0.5,), FEW, repetitions=1)


def test_a_peer_that_fails_or_hides_its_threads_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def fails(made: Prepared) -> Prepared:
        raise RuntimeError("not implemented\nfor this type")

    def busy() -> None:
        matrix = np.ones((400, 400))
        for _ in range(8):
            matrix = np.sin(matrix)

    _spoiled(monkeypatch, "scipy/csr/fp32", fails)
    assert run_bench([SMALL], (0.5,), FEW, repetitions=1).left_out["scipy/csr/fp32"] == (
        "RuntimeError: not implemented (test layer)"
    )
    with ThreadPoolExecutor(1) as pool:
        _spoiled(monkeypatch, "scipy/csr/fp32", lambda made: replace(made, call=lambda: pool.submit(busy).result()))
        left_out = run_bench([SMALL], (0.5,), FEW, repetitions=1).left_out
    assert "threads of its own" in left_out["scipy/csr/fp32"]


def test_arguments() -> None:
    with pytest.raises(kernels.KernelError, match="repetitions"):
        run_bench([SMALL], repetitions=0)
    with pytest.raises(kernels.KernelError, match="threads"):
        run_bench([SMALL], threads=0)
    with pytest.raises(kernels.KernelError, match="sparsities"):
        run_bench([SMALL], (90,))


# ---- statistics, machine, peaks ------------------------------------------------------------------------------------


def test_statistics_tell_noise_from_a_difference() -> None:
    random = np.random.default_rng(1)
    noise = np.exp(random.normal(0, 0.1, 30))
    assert paired(noise) > LEVEL
    assert differs(1.03, 0.001) and differs(0.97, 0.001)
    assert not differs(1.01, 1e-9) and not differs(2.0, 0.05)
    assert paired(noise * 1.2) < LEVEL
    assert paired([1.0] * 30) == 1
    assert unpaired(noise, np.exp(random.normal(0, 0.1, 30))) > LEVEL
    assert unpaired(noise, noise * 1.3) < LEVEL
    assert unpaired([2.0] * 5, [2.0] * 5) == 1


def test_machine() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert all(cache.size >= 1024 and cache.level in (1, 2, 3, 4) and cache.sharing >= 1 for cache in machine.caches)
    chosen = cores(1)
    assert chosen is None or (len(chosen) == 1 and chosen <= os.sched_getaffinity(0))


def test_peaks_are_of_this_machine_and_ordered() -> None:
    found = measure_peaks()
    names = list(found.gflops)
    assert names[0] == "generic"
    assert all(0.5 < value < 5000 for value in found.gflops.values())
    assert found.peak(None) > 0.9 * found.gflops["generic"]
    assert all(found.gflops[name] > found.peak(None) for name in names if UNITS[name].instruction)
    sizes = list(found.reads)
    assert sizes == sorted(sizes)
    assert found.reads[sizes[0]] > found.reads[sizes[-1]] > 0.1


def test_roof() -> None:
    assert FLAT.bandwidth(1 << 10) == 200
    assert FLAT.bandwidth(1 << 23) == pytest.approx(60)
    assert FLAT.roof("generic", 10, 1 << 14) == 40
    assert FLAT.roof("avx2", 0.1, 1 << 20) == pytest.approx(10)
    assert FLAT.peak("unheard of") == FLAT.peak(None) == 100
    assert Peaks({}, {}).roof(None, 1.0, 1) == np.inf


# ---- plots and comparisons -----------------------------------------------------------------------------------------


def test_plot_as_html(report: BenchReport) -> None:
    page = plot(report, ".html").decode()
    assert "<html>" in page
    assert all(m.kernel in page.replace("\\u002f", "/") for m in report.measurements)
    names = [line.name for line in lines(report)]
    assert "avx2: 100 GFLOP/s" in names
    assert any("GB/s" in name for name in names)
    even = replace(report, peaks=Peaks({"avx2": 100.0, "avx512": 101.0}, FLAT.reads))
    assert lines(even)[0].name == "avx2, avx512: 101 GFLOP/s"


def test_plot_as_png(report: BenchReport) -> None:
    pytest.importorskip("matplotlib")
    assert plot(report, ".png").startswith(b"\x89PNG")


def test_plots_that_cannot_be_drawn(report: BenchReport, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(kernels.KernelError, match=r"no '\.svg'"):
        plot(report, ".svg")
    with pytest.raises(kernels.KernelError, match=r"no '\.svg'"):
        check_plot(Path("a.svg"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for suffix, extra in ((".png", "bench"), (".html", "plot")):
        with pytest.raises(kernels.KernelError, match=rf"coppice\[{extra}\]"):
            check_plot(Path(f"a{suffix}"))
    nothing = run_bench([SMALL], (1.0,), ["scipy/*"], baseline="scipy/csr/fp32", repetitions=1)
    assert nothing.rows()[0]["of roof"] == "0%"
    with pytest.raises(kernels.KernelError, match="nothing to draw"):
        plot(nothing, ".html")


def _saved(path: Path, report: BenchReport, factor: float) -> Any:
    """A report whose kernels, but not its baseline, take ``factor`` times as long, with 30 rounds of some noise."""
    random = np.random.default_rng(0)
    changed = []
    for m in report.measurements:
        slow = 1.0 if m.kernel == report.baseline else factor
        times = tuple((m.microseconds * 1e-6 * slow * np.exp(random.normal(0, 0.02, 30))).tolist())
        ratios = tuple((1 / slow * np.exp(random.normal(0, 0.02, 30))).tolist())
        changed.append(replace(m, wall=times, cpu=times, ratios=ratios))
    path.write_text(replace(report, measurements=tuple(changed)).to_json())
    return read_report(path)


def test_compare(report: BenchReport, tmp_path: Path) -> None:
    old, new = _saved(tmp_path / "old.json", report, 1.0), _saved(tmp_path / "new.json", report, 1.25)
    same = compare(old, old)
    assert same.mean == 1
    assert not any(change.significant for change in same.changes)
    found = compare(old, new)
    assert len(found.changes) == len(report.measurements)
    for change in found.changes:
        is_baseline = change.name.endswith(bench.BASELINE)
        assert change.significant != is_baseline
        assert change.ratio == pytest.approx(1 if is_baseline else 0.8, rel=0.03)
    assert {c.name for c in found.slower(0.9)} == {c.name for c in found.changes if c.significant}
    assert found.slower(0.7) == []
    assert compare(new, old).slower(1.0) == []
    assert json.loads(json.dumps(found.to_dict()))["geometric_mean"] == pytest.approx(found.mean)


def test_compare_says_what_else_is_different(report: BenchReport, tmp_path: Path) -> None:
    old = _saved(tmp_path / "old.json", report, 1.0)
    other = replace(report, threads=2, measurements=report.measurements[:4])
    new = _saved(tmp_path / "new.json", other, 1.0)
    found = compare(old, new)
    assert found.context == {"threads": (1, 2)}
    assert len(found.only_old) == 4
    assert found.only_new == ()


def test_compare_reads_google_benchmarks_own_files(tmp_path: Path) -> None:
    row = {"name": "a", "run_type": "iteration", "real_time": 2.0, "cpu_time": 2.0, "time_unit": "ms"}
    path = tmp_path / "google.json"
    path.write_text(json.dumps({"context": {}, "benchmarks": [row, {"name": "a_mean", "run_type": "aggregate"}]}))
    assert read_report(path).times["a"].microseconds == (2000.0,)
    assert compare(read_report(path), read_report(path)).changes[0].ratio == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"context": {}, "benchmarks": [{"name": "a"}]}'])
def test_compare_refuses_other_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(kernels.KernelError, match="no report"):
        read_report(path)
    with pytest.raises(kernels.KernelError, match="cannot be read"):
        read_report(tmp_path / "missing.json")
    empty = Saved({}, {})
    with pytest.raises(kernels.KernelError, match="in common"):
        compare(empty, empty)


def test_the_baseline_is_the_first_peer() -> None:
    assert peers.peers()[0].name == bench.BASELINE


def test_the_tables_of_the_page_stand_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- end of measured -->\nafter\n")
    options = "--models ds_cnn --sparsities 0.9 --kernels coppice/best/csr/fp32 --repetitions 1"
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), *options.split(), "--json"]
    command += [str(tmp_path / "held.json"), "--docs", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("before\n<!-- measured -->\n")
    assert text.endswith("<!-- end of measured -->\nafter\n")
    assert "old" not in text.split("\n")
    assert "| fp32 unstructured | `torch/dense/fp32` | 1 |" in text
    layers = page.with_name("kernels_layers.md").read_text()
    assert "| ds_cnn | pointwise | 64x64x125 |" in layers
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (again.returncode, again.stderr) == (0, ""), "what was measured is not measured again"
    assert page.read_text() == text
    assert page.with_name("kernels_layers.md").read_text() == layers
    marked = (ROOT / "docs" / "kernels.md").read_text()
    for name in ("measured", "threads", "mobilenet"):
        assert marked.index(f"<!-- {name} -->\n") < marked.index(f"<!-- end of {name} -->\n")
