"""`with_latency`: a space that prices latency too, from one measurement of every call of the full model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import fx

from coppice.core.errors import UnsupportedError, UsageError
from coppice.core.graph import Graph
from coppice.core.labels import Flow
from coppice.core.space import Space
from coppice.core.tensors import refresh
from coppice.passes.space.price import price

WARM = 3


def with_latency(space: Space, *, repetitions: int = 30, threads: int = 1) -> Space:
    """``space`` with one cost more, ``latency``: seconds of one call on the example inputs, on this machine's CPU.

    Every call of the traced graph is timed (medians over ``repetitions`` runs, torch on ``threads`` threads). What a
    call that computes nothing takes is taken for its fixed part; the rest goes with its MACs, or with the numbers it
    gives where it has no MACs. Such a model is straight where hardware has steps: it ranks widths and meets budgets
    (``{"latency": "60%"}``, ``"3ms"``) to first order, and what a subnet takes must be measured on the subnet. A sum
    that lost an operand with a segment is still counted.

    Raises `UnsupportedError` for a model on meta tensors or on another device.
    """
    graph = space.graph
    graph.expect(space.version, "this space")
    if repetitions < 1 or threads < 1:
        raise UsageError(
            f"repetitions={repetitions}, threads={threads}", place="with_latency", remedy="give positive numbers"
        )
    refresh(graph)
    if graph.inputs is None or any(tensor.device.type != "cpu" for tensor in graph.tensors.values()):
        raise UnsupportedError(
            "latency is measured on the CPU", place="with_latency", remedy="move the model there before trace"
        )
    with _threads(threads), torch.no_grad():
        fixed = _fixed(repetitions)
        times = _times(graph, repetitions)
    seconds = {node: (min(fixed, took), max(took - fixed, 0.0)) for node, took in times.items()}
    flow = Flow(labels=dict(space.labels))
    classes = [family.classes for family in space.families]
    costs = price(graph, flow, space.tensor_axes, space.solution, space.leaves, classes, space.segments, seconds)
    return replace(space, costs=costs)


def _times(graph: Graph, repetitions: int) -> dict[fx.Node, float]:
    assert graph.inputs is not None
    flat = graph.flatten_inputs(*graph.inputs)
    taken: dict[fx.Node, list[float]] = {}
    for turn in range(WARM + repetitions):
        values: dict[fx.Node, Any] = dict(zip(graph.placeholders(), flat, strict=True))
        for node in graph.fx.nodes:
            if node.op == "get_attr":
                values[node] = graph.tensors[str(node.target)]
            elif node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                start = time.perf_counter()
                values[node] = cast("Any", node.target)(*args, **kwargs)
                if turn >= WARM:
                    taken.setdefault(node, []).append(time.perf_counter() - start)
    return {node: statistics.median(own) for node, own in taken.items()}


def _fixed(repetitions: int) -> float:
    """Seconds of a call that computes nothing."""
    x, taken = torch.zeros(1), []
    for _ in range(WARM + 10 * repetitions):
        start = time.perf_counter()
        torch.ops.aten.relu.default(x)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
