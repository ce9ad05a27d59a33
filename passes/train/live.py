"""The model while it trains: its tensors as they are at this moment, and whether its gradients are numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from coppice.core.errors import UsageError
from coppice.core.graph import Graph
from coppice.core.tensors import live_tensors, local, named_tensors


class LiveTensors:
    """The tensors of a graph's model by the graph's names, its buffers looked up anew at each call.

    Parameters are the objects that the base optimizer holds; moving a model puts new buffers in it.
    """

    def __init__(self, graph: Graph) -> None:
        self._fixed = live_tensors(graph)
        self._places: list[tuple[str, dict[str, torch.Tensor | None], str]] = []
        for name, tensor in self._fixed.items():
            path, _, leaf = name.rpartition(".")
            module = _module(graph.model, path)
            if module is not None and module._buffers.get(leaf) is tensor:
                self._places.append((name, module._buffers, leaf))

    def now(self) -> dict[str, torch.Tensor]:
        """Every tensor at this moment."""
        found = {name: tensor for name, own, leaf in self._places if (tensor := own.get(leaf)) is not None}
        return {**self._fixed, **found}


def _module(model: nn.Module | None, path: str) -> nn.Module | None:
    if model is None:
        return None
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


SMALL = 1 << 14
"""Gradients of at most this many numbers are always looked at whole."""


def finite(parameters: Iterable[torch.Tensor], thorough: bool = True) -> bool:
    """Whether the gradients on this rank are numbers, from one norm over each.

    Reading all gradients costs a sixth of a plain SGD step. Not ``thorough``, of large ones the first row is read: a
    bad loss fills all gradients, a bad activation a column of each row, and a bad gradient of an output all rows of the
    layers before. Half-precision gradients, where a sum can overflow on its own, are always read whole.
    """
    parts: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for p in parameters:
        if p.grad is not None:
            grad = _values(p.grad)
            whole = thorough or grad.ndim < 2 or grad.numel() <= SMALL or grad.dtype == torch.float16
            parts.setdefault((grad.device, grad.dtype), []).append(grad if whole else grad[0])
    with torch.no_grad():
        for (_, dtype), own in parts.items():
            one = not thorough and dtype != torch.float16  # short parts are joined first, for a single norm
            norm = torch.cat([part.flatten() for part in own]).norm() if one else torch.stack(torch._foreach_norm(own))
            if not math.isfinite(norm.sum().item()):  # also where only a square overflows
                return all(bool(torch.isfinite(part).all()) for group in parts.values() for part in group)
    return True


def _values(grad: torch.Tensor) -> torch.Tensor:
    own = local(grad)
    return own.coalesce().values() if own.is_sparse else own


def same_names(module: nn.Module, names: Iterable[str]) -> Mapping[str, torch.Tensor]:
    """The tensors of a copy of the model (an EMA, a wrapper) by the model's ``names``, whatever prefix they have there.

    Raises `UsageError` where the module is no copy of the model.
    """
    wanted = list(names)
    held = named_tensors(module)
    first = wanted[0] if wanted else ""
    prefixes = sorted((key[: -len(first)] for key in held if key.endswith(first)), key=len) if first else [""]
    for prefix in prefixes:
        if all(prefix + name in held for name in wanted):
            return {name: held[prefix + name] for name in wanted}
    raise UsageError(
        f"{type(module).__name__} has no tensors named like the model's (first: {first})",
        place="mask",
        remedy="pass a copy of the traced model, such as AveragedModel(model)",
    )
