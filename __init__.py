"""coppice compiles a neural network into compressed subnets that provably compute what the masked network did.

The names below are the public API; each is imported from its home on first use, so ``import coppice`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "trace": "coppice.frontends.torch",
    "build_space": "coppice.passes.space.build",
    "with_latency": "coppice.passes.space.latency",
    "prune": "coppice.passes.prune.one_shot",
    "discretise": "coppice.passes.prune.discretise",
    "recalibrate": "coppice.api.recalibrate",
    "reform": "coppice.api.reform",
    "Distillation": "coppice.api.distill",
    "Run": "coppice.api.run",
    "carry_over": "coppice.api.carry_over",
    "DHSPG": "coppice.passes.train.dhspg",
    "H2SPG": "coppice.passes.train.h2spg",
    "HESSO": "coppice.passes.train.hesso",
    "extract": "coppice.api.extract",
    "load": "coppice.api.subnet",
    "Subnet": "coppice.api.subnet",
    "compress": "coppice.api.compress",
    "explain": "coppice.passes.analyze.explain",
    "Graph": "coppice.core.graph",
    "Space": "coppice.core.space",
    "Config": "coppice.core.config",
    "CoppiceError": "coppice.core.errors",
    "TraceError": "coppice.core.errors",
    "UnsupportedError": "coppice.core.errors",
    "BudgetError": "coppice.core.errors",
    "EquivalenceError": "coppice.core.errors",
    "UsageError": "coppice.core.errors",
}

__all__ = [
    "DHSPG",
    "H2SPG",
    "HESSO",
    "BudgetError",
    "Config",
    "CoppiceError",
    "Distillation",
    "EquivalenceError",
    "Graph",
    "Run",
    "Space",
    "Subnet",
    "TraceError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "build_space",
    "carry_over",
    "compress",
    "discretise",
    "explain",
    "extract",
    "load",
    "prune",
    "recalibrate",
    "reform",
    "trace",
    "with_latency",
]

if TYPE_CHECKING:
    from coppice.api.carry_over import carry_over
    from coppice.api.compress import compress
    from coppice.api.distill import Distillation
    from coppice.api.extract import extract
    from coppice.api.recalibrate import recalibrate
    from coppice.api.reform import reform
    from coppice.api.run import Run
    from coppice.api.subnet import Subnet, load
    from coppice.core.config import Config
    from coppice.core.errors import (
        BudgetError,
        CoppiceError,
        EquivalenceError,
        TraceError,
        UnsupportedError,
        UsageError,
    )
    from coppice.core.graph import Graph
    from coppice.core.space import Space
    from coppice.frontends.torch import trace
    from coppice.passes.analyze.explain import explain
    from coppice.passes.prune.discretise import discretise
    from coppice.passes.prune.one_shot import prune
    from coppice.passes.space.build import build_space
    from coppice.passes.space.latency import with_latency
    from coppice.passes.train.dhspg import DHSPG
    from coppice.passes.train.h2spg import H2SPG
    from coppice.passes.train.hesso import HESSO


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'coppice' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
