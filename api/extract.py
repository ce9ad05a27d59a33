"""`extract`: cut, build the module, prove it, and write the receipt."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch
from torch import fx, nn

import coppice
from coppice.api.subnet import Subnet
from coppice.backends.module.graph_model import graph_model
from coppice.backends.module.user_class import repair, with_tensors
from coppice.core.config import Config
from coppice.core.cost import METRICS
from coppice.core.errors import EquivalenceError, UsageError
from coppice.core.extraction import Extraction
from coppice.core.graph import Graph
from coppice.core.space import Space
from coppice.frontends.torch import tracing_mode
from coppice.passes.extract.check import TOLERANCE, Agreement, compare, difference, inputs_like
from coppice.passes.extract.slice import cut
from coppice.passes.space.build import build_space

MODULE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}


def extract(
    graph: Graph | Space,
    config: Config,
    *,
    space: Space | None = None,
    validate: bool = True,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Subnet:
    """The subnet that ``config`` denotes, as a module of its own with the current weights of the model.

    ``graph`` may be the `Space` the config came from; given a `Graph`, the config's space is looked up there.

    Every extraction is validated in fp64 against the masked full model on the example inputs, on random ones and at a
    second batch size; a relative difference above ``tolerance`` raises `EquivalenceError`. On meta tensors nothing can
    be run, and the receipt says so.
    """
    if not isinstance(config, Config):
        what = type(config).__name__
        raise UsageError(
            f"expected a Config, got {what}", place="extract", remedy="use space.uniform(0.5), for example"
        )
    if not isinstance(graph, (Graph, Space)):
        raise UsageError(
            f"expected a Graph or Space, got {type(graph).__name__}",
            place="extract",
            remedy="coppice.trace the model first",
        )
    owner = graph if isinstance(graph, Space) else space or graph.spaces.get(config.space) or build_space(graph)
    config = owner.check(config)
    extraction = cut(owner, config)
    masked = owner.masked_tensors(config)
    agreement: Agreement | None = None
    if validate and not owner.graph.is_meta:
        agreement = compare(owner.graph, masked, extraction.graph, seed=seed)
        if not agreement.error <= tolerance:
            raise EquivalenceError(
                f"the subnet differs from its masked reference by {agreement.error:.3g} (allowed: {tolerance:.1g})",
                error=agreement.error,
                place=owner.graph.name,
                remedy="this is a bug in coppice: please report the model and receipt; until then, name the layers "
                "involved in build_space(ignore=...)",
            )
    module, kind, why = _module(owner.graph, extraction)
    reference_kind = "user" if _reference_runs(owner.graph, masked) else "graph"
    receipt = _receipt(owner, config, agreement, tolerance, seed)
    receipt["module"] = {"kind": kind, "why": why, "reference": reference_kind, "class": type(module).__name__}
    return Subnet(extraction.graph, module, receipt, space=owner, config=config, masked=masked)


def _reference_runs(graph: Graph, masked: dict[str, torch.Tensor]) -> bool:
    """Whether a masked copy of the user's own module can be made, and computes what the masked graph does."""
    if graph.model is None or graph.inputs is None:
        return False
    try:
        own = with_tensors(graph.model, masked, graph.aliases)
        if graph.is_meta:
            return True
        args, kwargs = graph.inputs
        with tracing_mode(own):
            return difference(graph.run(*args, tensors=masked, **kwargs), own(*args, **kwargs)) <= _allowed(graph)
    except Exception:  # noqa: BLE001 (a user's module may refuse deepcopy in any way)
        return False


def _allowed(graph: Graph) -> float:
    dtypes = {t.dtype for t in graph.tensors.values() if t.is_floating_point()}
    return max((MODULE_TOLERANCE.get(d, 1e-4) for d in dtypes), default=1e-4)


def _module(graph: Graph, extraction: Extraction) -> tuple[nn.Module, str, str]:
    """The user's class where it runs and agrees with the graph; else a GraphModule, and the reason."""
    fallback = graph_model(extraction.graph)
    if graph.model is None:
        return fallback, "graph", "the model was not given as a module"
    if isinstance(graph.model, fx.GraphModule):
        return fallback, "graph", "the model is itself a GraphModule"
    try:
        own = with_tensors(graph.model, extraction.graph.tensors, extraction.graph.aliases)
        repair(own, extraction.literals)
        if graph.is_meta:
            return own, "user", "not run: meta tensors"
        with tracing_mode(own):
            for args, kwargs in inputs_like(graph, 1, 1):
                gap = difference(fallback(*args, **kwargs), own(*args, **kwargs))
                if not gap <= _allowed(graph):
                    return fallback, "graph", f"{type(own).__name__} runs at the new sizes but differs by {gap:.2g}"
    except Exception as error:  # noqa: BLE001 (whatever the user's forward raises at sizes it does not expect)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return fallback, "graph", f"{type(graph.model).__name__} does not run at the new sizes: {first[:200]}"
    return own, "user", ""


def _receipt(space: Space, config: Config, agreement: Agreement | None, tolerance: float, seed: int) -> dict[str, Any]:
    before, after = space.cost(space.full()), space.cost(config)
    return {
        "coppice": coppice.__version__,
        "model": space.graph.name,
        "costs": {m: {"before": float(before[m][0]), "after": float(after[m][0])} for m in METRICS},
        "equivalence": None
        if agreement is None
        else {
            "error": agreement.error,
            "tolerance": tolerance,
            "dtype": agreement.dtype,
            "trials": agreement.trials,
            "batches": list(agreement.batches),
        },
        "validated": agreement is not None,
        "config": {name: list(units) for name, units in config.keep},
        "widths": {f.name: [f.size, len(config[f.name])] for f in space.families},
        "options": dict(space.options),
        "notes": list(space.graph.notes),
        "seed": seed,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
