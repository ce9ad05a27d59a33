"""`discretise`: of parallel operators that training has weighed against each other, keep one each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from coppice.core.config import Config
from coppice.core.errors import UnsupportedError, UsageError
from coppice.core.labels import Label
from coppice.core.names import unknown_name
from coppice.core.segments import Choice
from coppice.core.space import Space
from coppice.core.tensors import refresh
from coppice.passes.extract.reference import reference_graph
from coppice.passes.prune.scores import Loss, batches, default_loss

WAYS = ("weight", "perturbation")


def discretise(
    space: Space, by: str = "weight", calibration: Iterable[Any] | None = None, *, loss: Loss | None = None
) -> Config:
    """The config that keeps one branch of every choice of ``space`` (`Segments.choices`), and all units.

    ``by="weight"`` keeps the branch that is multiplied by the largest number, as DARTS does with the softmax of its
    alphas (Liu et al., 2019). ``by="perturbation"`` keeps the one without which the loss on ``calibration`` is worst,
    each branch left out alone (Wang et al., 2021); ``loss`` is as in `prune`.

    What is kept is still multiplied by its weight: the subnet computes what the network without the other branches
    does. Raises `UsageError` for a space without choices or perturbation without data, `UnsupportedError` where
    branches have no weights.
    """
    if by not in WAYS:
        raise unknown_name("way to discretise", by, WAYS)
    if not space.segments.choices:
        raise UsageError(
            f"{space.graph.name} has no parallel operators to choose from",
            place="discretise",
            remedy="give a network in which operators of one value are summed; erase other segments by name",
        )
    refresh(space.graph)
    merit = _weights(space) if by == "weight" else _harm(space, calibration, loss)
    picked = {choice.name: max(choice.branches, key=lambda name: merit[name]) for choice in space.segments.choices}
    return space.erase(*space.segments.choose(picked))


def _weights(space: Space) -> dict[str, float]:
    """The number that multiplies each branch: the one static operand of one element of its last call."""
    if space.graph.inputs is None or space.graph.is_meta:
        raise UnsupportedError("the weights cannot be computed without values", place="discretise")
    args, kwargs = space.graph.inputs
    with torch.no_grad():
        values = space.graph.values(*args, **kwargs)
    result: dict[str, float] = {}
    for choice, name in _branches(space):
        last = space.segments.named(name).operand
        while len(last.all_input_nodes) == 1:  # what only moves the product: 0 + x, a cast
            last = last.all_input_nodes[0]
        static = [node for node in last.all_input_nodes if _is_number(space, node)]
        if len(static) != 1:
            raise UnsupportedError(
                f"branch {name} of {choice.name} is not multiplied by one weight",
                place="discretise",
                remedy='use by="perturbation" with calibration data, or space.segments.choose',
            )
        result[name] = float(values[static[0]])
    return result


def _is_number(space: Space, node: torch.fx.Node) -> bool:
    label = space.labels[node]
    return isinstance(label, Label) and label.static and all(size == 1 for size in node.meta["value"].shape)


def _harm(space: Space, calibration: Iterable[Any] | None, loss: Loss | None) -> dict[str, float]:
    """The mean loss on all batches without each branch."""
    data = list(batches(space, calibration or ()))
    if not data:
        raise UsageError(
            "perturbation needs calibration batches", place="discretise", remedy="pass calibration=[(inputs, targets)]"
        )
    result: dict[str, float] = {}
    for _, name in _branches(space):
        config = space.erase(name)
        graph, tensors = reference_graph(space, config), space.masked_tensors(config)
        with torch.no_grad():
            losses = [(loss or default_loss)(graph.run(*a, tensors=tensors, **k), t) for a, k, t in data]
        result[name] = float(torch.stack(losses).double().mean())
    return result


def _branches(space: Space) -> Iterable[tuple[Choice, str]]:
    return ((choice, name) for choice in space.segments.choices for name in choice.branches)
