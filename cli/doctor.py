"""`coppice doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import typer

import coppice
from coppice.cli.options import Debug, Json
from coppice.cli.show import emit, line, table, working

REQUIRED = ("torch", "numpy", "scipy", "networkx", "safetensors", "pydantic", "cffi", "onnx", "onnxscript")
OPTIONAL = {
    "onnxruntime": "to check exported ONNX files",
    "numba": "for kernels without a C compiler",
    "scikit-learn": "for coppice demo",
    "plotly": "for plots of runs and benchmarks, as HTML",
    "matplotlib": "for plots of benchmarks, as PNG",
    "openvino": "as a peer in benchmarks",
}
KERNEL_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Check:
    """One finding; ``state`` is ``ok``, ``missing`` (works without it) or ``broken``."""

    name: str
    state: str
    detail: str


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Look at the installation and try it out; exit code 1 if something is broken."""
    with working("checking the installation"):
        checks = [*_packages(), *_tried()]
        facts = {
            "coppice": coppice.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count() or 1,
            "torch_threads": _torch_threads(),
        }
    broken = [check.name for check in checks if check.state == "broken"]
    if as_json:
        emit({**facts, "checks": [asdict(check) for check in checks], "broken": broken})
    else:
        _print(facts, checks, broken)
    if broken:
        raise typer.Exit(1)


def _print(facts: dict[str, Any], checks: list[Check], broken: list[str]) -> None:
    table(("", ""), [(name.replace("_", " "), value) for name, value in facts.items()])
    line()
    table(("check", "state", "detail"), [(c.name, c.state, c.detail) for c in checks])
    line()
    line(f"broken: {', '.join(broken)}" if broken else "everything that is needed works")


def _packages() -> Iterable[Check]:
    for name in REQUIRED:
        version = _version(name)
        yield Check(name, "ok" if version else "broken", version or f"not installed: pip install {name}")
    for name, purpose in OPTIONAL.items():
        version = _version(name)
        yield Check(name, "ok" if version else "missing", version or f"not installed, needed {purpose}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _torch_threads() -> int | None:
    try:
        import torch
    except (ImportError, OSError):
        return None
    return int(torch.get_num_threads())


def _tried() -> Iterable[Check]:
    """The parts that can be tried: each yields its finding, and a failure of any kind is one."""
    trials: dict[str, Callable[[], tuple[str, str]]] = {
        "kernel library": _library,
        "kernel result": _kernel,
        "compiler": _compiler,
    }
    for name, trial in trials.items():
        try:
            state, detail = trial()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the finding)
            first = (str(error).strip().splitlines() or [""])[0]
            state, detail = "broken", f"{type(error).__name__}: {first}"
        yield Check(name, state, detail)


def _library() -> tuple[str, str]:
    from coppice.kernels import status

    found = status()
    return "ok" if found.library else "missing", found.detail


def _kernel() -> tuple[str, str]:
    """Every variant that can run here, on one small product, against numpy in fp64."""
    import numpy as np

    from coppice.kernels import Weight, matmul, variants

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 32), np.float32) * (rng.random((24, 32)) < 0.3)
    x = rng.standard_normal((32, 40), np.float32)
    exact = weight.astype(np.float64) @ x
    names = [v.name for v in variants() if v.available]
    for name in names:
        error = float(np.abs(matmul(Weight.sparse(weight.astype(np.float32)), x, variant=name) - exact).max())
        if not error <= KERNEL_TOLERANCE * float(np.abs(exact).max()):
            return "broken", f"{name} is off by {error:.2g}"
    return "ok", f"{', '.join(names)} agree with numpy"


def _compiler() -> tuple[str, str]:
    """A tiny network traced, cut to half, and proved."""
    import torch
    from torch import nn

    from coppice.api.compress import compress

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    subnet = compress(net, torch.randn(2, 3, 8, 8), budget={"macs": "50%"})
    macs = subnet.receipt["costs"]["macs"]
    proof = subnet.receipt["equivalence"]
    return "ok", f"a small network cut to {macs['after'] / macs['before']:.0%} of its MACs, error {proof['error']:.1e}"
