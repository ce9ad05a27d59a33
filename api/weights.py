"""A space over other weights than its model's: an average of them, a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from coppice.backends.module.user_class import with_tensors
from coppice.core.errors import UsageError
from coppice.core.space import Space
from coppice.core.tensors import check_finite, check_fits, named_tensors

Weights: TypeAlias = nn.Module | Mapping[str, Tensor]

PLACE = "extract(weights=...)"


def weighted(space: Space, weights: Weights) -> Space:
    """``space`` over a copy of its model that holds ``weights``: a module like it, or tensors by name.

    Every parameter of the graph must be among them; a buffer that is not keeps the model's values. Raises `UsageError`
    for names the model does not have, shapes that are not the model's, and values that are not finite.
    """
    graph = space.graph
    given = _named(weights)
    check_fits(graph, given, "the model", PLACE, "give the weights of a model of the same sizes")
    for name in graph.parameters():
        if name not in given:
            raise UsageError(
                "the weights lack this parameter", place=f"{PLACE}: {name}", remedy="give all the model's parameters"
            )
    tensors = {name: _like(tensor, given.get(name)) for name, tensor in graph.tensors.items()}
    check_finite(tensors.items())
    model = None
    if graph.model is not None:
        others = {name: _like(tensor, given.get(name)) for name, tensor in named_tensors(graph.model).items()}
        model = with_tensors(graph.model, {**others, **tensors}, graph.aliases)
        now = named_tensors(model)
        tensors = {name: now.get(name, tensor) for name, tensor in tensors.items()}
    return replace(space, graph=replace(graph, tensors=tensors, model=model, spaces=WeakValueDictionary()))


def _named(weights: Weights) -> dict[str, Tensor]:
    if isinstance(weights, AveragedModel):
        weights = weights.module
    if isinstance(weights, nn.Module):
        return named_tensors(weights)
    if not isinstance(weights, Mapping) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise UsageError(
            f"it is a {type(weights).__name__}", place=PLACE, remedy="pass a module like the model, or its state dict"
        )
    return dict(weights)


def _like(tensor: Tensor, values: Tensor | None) -> Tensor:
    """A copy of ``tensor``, with ``values`` where there are some."""
    data = torch.empty_like(tensor).copy_((tensor if values is None else values).detach())
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
