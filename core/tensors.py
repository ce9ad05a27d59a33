"""The tensors of the user's model as they are now, and whether they are fit to be cut."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from coppice.core.errors import UsageError
from coppice.core.graph import Graph


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def refresh(graph: Graph) -> None:
    """Let ``graph`` hold the present tensors of its model, and check that they are finite.

    ``load_state_dict(assign=True)``, ``model.to(...)`` and assignment put new tensors in place of those that were
    traced. Raises `UsageError` where one is gone, has another shape or is no longer shared as it was, or holds NaN.
    """
    if graph.model is not None:
        now = named_tensors(graph.model)
        for name, traced in graph.tensors.items():
            if isinstance(traced, nn.Parameter) and name not in now:
                raise _changed("the model no longer has it", name)
            if name in now and now[name].shape != traced.shape:
                raise _changed(f"its shape is {tuple(now[name].shape)} and was {tuple(traced.shape)} when traced", name)
        for alias, name in graph.aliases.items():
            if alias in now and name in now and not _same(now[alias], now[name]):
                raise _changed(f"it was one tensor with {name} when traced, and now differs from it", alias)
        graph.tensors = {name: now.get(name, traced) for name, traced in graph.tensors.items()}
    check_finite(graph.tensors.items())


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise `UsageError` at a parameter with NaN or infinity, or a buffer with NaN (attention masks hold infinity)."""
    for name, tensor in tensors:
        values = tensor.detach()
        if values.is_meta or not values.is_floating_point():
            continue
        if isinstance(tensor, nn.Parameter):
            bad = int((~torch.isfinite(values)).sum())
            if bad:
                raise UsageError(
                    f"{bad} of {values.numel()} values are NaN or infinite",
                    place=f"parameter {name}",
                    remedy="load a checkpoint that trained without diverging; scores and checks would be meaningless",
                )
        elif bool(values.isnan().any()):
            raise UsageError(
                "it holds NaN", place=f"buffer {name}", remedy="load a checkpoint that trained without diverging"
            )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.shape == b.shape and (a.is_meta or bool(torch.equal(a, b))))


def _changed(fact: str, name: str) -> UsageError:
    return UsageError(fact, place=f"tensor {name}", remedy="trace the model again and build a new space")
