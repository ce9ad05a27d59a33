"""The module of a subnet: the user's class where it runs at the new sizes and agrees, else the graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from coppice.backends.module.graft import graft, places, record
from coppice.backends.module.graph_model import graph_model
from coppice.backends.module.provenance import Provenance, observe
from coppice.backends.module.user_class import Repairs, apply, plan, with_tensors
from coppice.core.errors import first_line
from coppice.core.extraction import Extraction
from coppice.core.graph import Graph
from coppice.frontends.torch import tracing_mode
from coppice.passes.extract.check import TOLERANCE, check_trace, module_gap

MOST_NOISE = 1e-4
"""A user's class further than this from its own traced graph is not the model that was traced."""


def noise_of(graph: Graph, masked: dict[str, torch.Tensor]) -> float | None:
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
    """A module, whether it is of the user's class or the graph, why, and whose forwards are the graph's code.

    ``repairs`` turn a model of the user's class with the small tensors into this module, up to those forwards.
    """

    module: nn.Module
    kind: str
    why: str = ""
    rewritten: tuple[str, ...] = ()
    repairs: Repairs | None = None


def build(graph: Graph, extraction: Extraction, noise: float | None) -> Built:
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
    repairs = plan(graph.model, extraction, found)
    own, why = _tried(graph, extraction, noise, repairs, ())
    if own is not None:
        return Built(own, "user", "not run: meta tensors" if graph.is_meta else "", (), repairs)
    then = ""
    for averages in (False, True) if not graph.is_meta else ():
        paths = places(extraction, graph.model, averages)
        second, then = _tried(graph, extraction, noise, repairs, paths) if paths else (None, "")
        if second is not None:
            return Built(second, "user", f"{name} {why}", paths, repairs)
    return Built(fallback, "graph", f"{name} {why}" + (f"; with forwards rewritten it {then}" if then else ""))


def _tried(
    graph: Graph, extraction: Extraction, noise: float, repairs: Repairs, paths: Sequence[str]
) -> tuple[nn.Module | None, str]:
    """The repaired class, its forwards at ``paths`` replaced, where it agrees with the graph; else None, and why."""
    assert graph.model is not None
    try:
        own = with_tensors(graph.model, extraction.graph.tensors, extraction.graph.aliases)
        norms = tuple(recount for recount in repairs.norms if recount.modules[-1] not in paths)
        apply(own, replace(repairs, norms=norms), extraction.graph.tensors)
        if paths:
            with tracing_mode(graph.model):
                graft(own, graph, extraction, paths, record(graph.model, graph))
        gap = _gap(extraction.graph, extraction.graph.tensors, own)
    except Exception as error:  # noqa: BLE001 (whatever the user's forward raises at sizes it does not expect)
        return None, f"does not run at the new sizes: {first_line(error)[:200]}"
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
