"""`extract`: cut, build the module, prove it, and write the receipt."""

from __future__ import annotations

import copy
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

import coppice
from coppice.api.subnet import Origin, Subnet
from coppice.backends.module.graft import graft, places, record
from coppice.backends.module.graph_model import graph_model
from coppice.backends.module.provenance import Provenance, observe
from coppice.backends.module.user_class import repair, with_tensors
from coppice.core.config import Config
from coppice.core.cost import METRICS
from coppice.core.errors import EquivalenceError, UsageError
from coppice.core.extraction import Extraction
from coppice.core.graph import Graph
from coppice.core.space import Space
from coppice.core.tensors import refresh
from coppice.frontends.torch import tracing_mode
from coppice.passes.extract.check import REPORT, TOLERANCE, Agreement, check_trace, compare, module_gap
from coppice.passes.extract.renormalise import reference_graph
from coppice.passes.extract.slice import cut
from coppice.passes.space.build import build_space

MOST_NOISE = 1e-4
"""A user's class further than this from its own traced graph is not the model that was traced."""


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
    refresh(owner.graph)
    extraction = cut(owner, config)
    masked = owner.masked_tensors(config)
    reference = reference_graph(owner, config)
    agreement: Agreement | None = None
    if validate and not owner.graph.is_meta:
        agreement = compare(reference, masked, extraction.graph, seed=seed)
        if not agreement.error <= tolerance:
            raise EquivalenceError(
                f"the subnet differs from its masked reference by {agreement.error:.3g} (allowed: {tolerance:.1g})",
                error=agreement.error,
                place=owner.graph.name,
                remedy=REPORT,
            )
    noise = _reference(owner.graph, masked)
    built = _module(owner.graph, extraction, noise)
    own = noise is not None and noise <= MOST_NOISE and reference is owner.graph
    receipt = _receipt(owner, config, agreement, tolerance, seed)
    receipt["folded"] = sorted(extraction.folded)
    receipt["module"] = {
        "kind": built.kind,
        "why": built.why,
        "reference": "user" if own else "graph",
        "class": type(built.module).__name__,
        "rewritten": list(built.rewritten),
    }
    return Subnet(extraction.graph, built.module, receipt, Origin(owner, config, masked, reference, extraction))


def _reference(graph: Graph, masked: dict[str, torch.Tensor]) -> float | None:
    """How far a masked copy of the user's own module is from the masked graph in fp64; None where none can be made."""
    if graph.model is None or isinstance(graph.model, fx.GraphModule):
        return None
    try:
        noise = _gap(graph, masked, with_tensors(graph.model, masked, graph.aliases))
    except Exception:  # noqa: BLE001 (a user's module may refuse to be copied or widened in any way)
        noise = None
    if (noise is None or noise > MOST_NOISE) and not graph.is_meta and graph.inputs is not None:
        with tracing_mode(graph.model):
            check_trace(graph, graph.model)
    return noise


def _gap(graph: Graph, tensors: dict[str, torch.Tensor], own: nn.Module) -> float:
    if graph.is_meta:
        return 0.0
    wide = copy.deepcopy(own).double()
    with tracing_mode(wide):
        return module_gap(graph, tensors, wide)


@dataclass(frozen=True)
class Built:
    """A module, whether it is of the user's class or the graph, why, and whose forwards are the graph's code."""

    module: nn.Module
    kind: str
    why: str = ""
    rewritten: tuple[str, ...] = ()


def _module(graph: Graph, extraction: Extraction, noise: float | None) -> Built:
    """The user's class where it runs and agrees with the graph; else a GraphModule, and the reason.

    ``noise`` is how far the user's class is from its own graph before any cut: casts to fp32 inside it, say. The small
    module may not be much further from the small graph.
    """
    fallback = graph_model(extraction.graph)
    if graph.model is None or isinstance(graph.model, fx.GraphModule):
        return Built(fallback, "graph", "the model was not given as a module of the user's own")
    name = type(graph.model).__name__
    if noise is None:
        return Built(fallback, "graph", f"{name} cannot be copied and run in fp64 to be compared")
    if noise > MOST_NOISE:
        why = f"{name} in fp64 differs from its own graph by {noise:.2g}: does forward keep state?"
        return Built(fallback, "graph", why)
    found = _provenance(graph)
    own, why = _tried(graph, extraction, noise, found, ())
    if own is not None:
        return Built(own, "user", "not run: meta tensors" if graph.is_meta else "")
    paths = places(extraction, graph.model)
    if paths and not graph.is_meta:
        second, _ = _tried(graph, extraction, noise, found, paths)
        if second is not None:
            return Built(second, "user", f"{name} {why}", tuple(paths))
    return Built(fallback, "graph", f"{name} {why}")


def _tried(
    graph: Graph, extraction: Extraction, noise: float, found: Provenance | None, paths: Sequence[str]
) -> tuple[nn.Module | None, str]:
    """The repaired class, its forwards at ``paths`` replaced, where it agrees with the graph; else None, and why."""
    assert graph.model is not None
    try:
        own = with_tensors(graph.model, extraction.graph.tensors, extraction.graph.aliases)
        repair(own, extraction, found)
        if paths:
            with tracing_mode(graph.model):
                graft(own, graph, extraction, paths, record(graph.model, graph))
        gap = _gap(extraction.graph, extraction.graph.tensors, own)
    except Exception as error:  # noqa: BLE001 (whatever the user's forward raises at sizes it does not expect)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return None, f"does not run at the new sizes: {first[:200]}"
    return (own, "") if gap <= max(TOLERANCE, 10 * noise) else (None, f"runs at the new sizes but differs by {gap:.2g}")


def _provenance(graph: Graph) -> Provenance | None:
    """What the attributes of the user's modules are used for; None where the model does not run with tracked ones."""
    if graph.model is None or graph.inputs is None:
        return None
    try:
        with tracing_mode(graph.model):
            return observe(graph.model, *graph.inputs)
    except Exception:  # noqa: BLE001 (a user's forward may not take an integer for what it is)
        return None


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
