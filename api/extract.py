"""`extract`: cut, build the module, prove it, and write the receipt."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

import coppice
from coppice.api.module import MOST_NOISE, build, noise_of
from coppice.api.subnet import Origin, Subnet
from coppice.api.weights import Weights, weighted
from coppice.core.config import Config
from coppice.core.cost import METRICS
from coppice.core.errors import EquivalenceError, UsageError
from coppice.core.graph import Graph
from coppice.core.space import Space
from coppice.core.tensors import refresh
from coppice.passes.extract.check import REPORT, TOLERANCE, Agreement, compare
from coppice.passes.extract.reference import reference_graph
from coppice.passes.extract.slice import cut
from coppice.passes.space.build import build_space


def extract(
    graph: Graph | Space,
    config: Config,
    *,
    space: Space | None = None,
    weights: Weights | None = None,
    validate: bool = True,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Subnet:
    """The subnet that ``config`` denotes, as a module of its own with the current weights of the model.

    With ``weights`` it has those instead: an average of the model's, say, as a module like it
    (``torch.optim.swa_utils.AveragedModel``) or a state dict. The model itself is not touched.

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
    owner = owner if weights is None else weighted(owner, weights)
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
    noise = noise_of(owner.graph, masked)
    built = build(owner.graph, extraction, noise)
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
    return Subnet(
        extraction.graph, built.module, receipt, Origin(owner, config, masked, reference, extraction, built.repairs)
    )


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
        "config": config.to_dict(),
        "widths": {f.name: [f.size, len(config[f.name])] for f in space.families},
        "options": dict(space.options),
        "notes": list(space.graph.notes),
        "seed": seed,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
