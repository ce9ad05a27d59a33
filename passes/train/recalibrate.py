"""Batch-norm statistics of a cut graph, measured again on calibration data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from coppice.core.calls import Call, op_name
from coppice.core.errors import UsageError
from coppice.core.graph import Graph


def statistics(
    graph: Graph, tensors: dict[str, torch.Tensor], batches: Iterable[tuple[tuple[Any, ...], dict[str, Any], Any]]
) -> dict[str, torch.Tensor]:
    """Means and variances of every batch norm's input, averaged over ``batches``, under the names of its buffers.

    The graph runs as in training (each layer normalises by the batch), so later layers see recalibrated inputs. A graph
    without batch norms gives an empty dict.
    """
    body = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    norms: list[tuple[fx.Node, Call]] = []
    names: set[str] = set()
    for node in graph.fx.nodes:
        env[node] = new = body.node_copy(node, lambda n: env[n])
        if node.op == "call_function" and op_name(node.target) == "aten.batch_norm":
            norms.append((new, Call(node)))
            names |= {str(Call(node)[k].target) for k in ("running_mean", "running_var") if Call(node)[k] is not None}
    if not names:
        return {}
    measured = {n: t.detach().clone() if n in names else t for n, t in tensors.items()}
    running = replace(graph, fx=body)
    count = 0
    with torch.no_grad():
        for count, (args, kwargs, _) in enumerate(batches, start=1):
            for new, call in norms:  # momentum 1/k makes the running value the plain average of k batches
                changed, _ = call.with_arguments({"training": True, "momentum": 1.0 / count})
                new.args = fx.map_arg(changed, lambda n: env[n])
            running.run(*args, tensors=measured, **kwargs)
    if not count:
        raise UsageError(
            "no calibration batch was given", place="recalibrate", remedy="pass at least one batch of inputs"
        )
    return {name: measured[name] for name in names}
