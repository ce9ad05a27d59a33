"""The tensors of the user's model as they are now, and whether they are fit to be cut."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from coppice.core.errors import UnsupportedError, UsageError
from coppice.core.graph import Graph
from coppice.core.names import unknown_name

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def all_tensors(graph: Graph) -> dict[str, torch.Tensor]:
    """The model's parameters and buffers under each of their names, and what else the graph holds."""
    return {**({} if graph.model is None else named_tensors(graph.model)), **graph.tensors}


def check_fits(graph: Graph, tensors: Mapping[str, torch.Tensor], whose: str, place: str, remedy: str) -> None:
    """Raise `UsageError` where ``whose`` graph has no tensor of one's name, or one of another shape."""
    known = all_tensors(graph)
    for name, tensor in tensors.items():
        own = known.get(graph.canonical(name))
        if own is None:
            raise unknown_name(f"tensor of {whose}", name, known)
        if tensor.shape != own.shape:
            raise UsageError(
                f"its shape is {tuple(tensor.shape)}, and {whose}'s is {tuple(own.shape)}",
                place=f"{place}: {name}",
                remedy=remedy,
            )


def refresh(graph: Graph) -> None:
    """Let ``graph`` hold the present tensors of its model, and check that they are finite.

    ``load_state_dict(assign=True)``, ``model.to(...)`` and assignment put new tensors in place of those that were
    traced. Sharded ones are gathered, so every rank must call this. Raises `UsageError` where a tensor is gone, has
    another shape or is no longer shared as it was, or holds NaN.
    """
    graph.tensors = {name: full(tensor) for name, tensor in live_tensors(graph).items()}
    check_finite(graph.tensors.items())


def live_tensors(graph: Graph) -> dict[str, torch.Tensor]:
    """The present tensors of the graph's model by the graph's names, sharded as they are; raises as `refresh` does."""
    if graph.model is not None:
        _reshard(graph.model)
        now = named_tensors(graph.model)
        for name, traced in graph.tensors.items():
            if isinstance(traced, nn.Parameter) and name not in now:
                raise _changed("the model no longer has it", name)
            if name in now and now[name].shape != traced.shape:
                raise _changed(f"its shape is {tuple(now[name].shape)} and was {tuple(traced.shape)} when traced", name)
        for alias, name in graph.aliases.items():
            if alias in now and name in now and not _same(now[alias], now[name]):
                raise _changed(f"it was one tensor with {name} when traced, and now differs from it", alias)
        return {name: now.get(name, traced) for name, traced in graph.tensors.items()}
    return dict(graph.tensors)


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


# ---- sharded tensors -------------------------------------------------------------------------------------------------


def _reshard(model: nn.Module) -> None:
    """FSDP2 leaves a root's parameters gathered after a forward pass; optimizers hold the sharded ones."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()


@dataclass(frozen=True)
class Shard:
    """This rank's part of a sharded tensor: the positions [low, high) of each axis, over ``mesh``.

    ``counts`` is True on one of several ranks that hold the same part.
    """

    mesh: DeviceMesh
    bounds: tuple[tuple[int, int], ...]
    counts: bool


def as_sharded(tensor: torch.Tensor) -> DTensor | None:
    """``tensor`` where it is sharded over ranks; None where it is whole. Imports nothing that is not there yet."""
    module = sys.modules.get("torch.distributed.tensor")
    return tensor if module is not None and isinstance(tensor, module.DTensor) else None


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What of ``tensor`` lies on this rank, sharing its memory."""
    sharded = as_sharded(tensor)
    return tensor if sharded is None else sharded.to_local()


def full(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, gathered from all ranks if it is sharded; a parameter stays one."""
    sharded = as_sharded(tensor)
    if sharded is None:
        return tensor
    with torch.no_grad():
        whole = sharded.full_tensor()
    return nn.Parameter(whole, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole


def shard(tensor: torch.Tensor) -> Shard | None:
    """Which part of a sharded tensor this rank holds; None for a whole tensor.

    Knows ``Shard(axis)``, cut as `torch.chunk` cuts, and ``Replicate``, on meshes of any number of dimensions, and
    raises `UnsupportedError` for other placements.
    """
    sharded = as_sharded(tensor)
    if sharded is None:
        return None
    placements = sys.modules["torch.distributed.tensor"]
    mesh, counts = sharded.device_mesh, True
    bounds = [(0, size) for size in tensor.shape]
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise UnsupportedError("this rank is outside the mesh of a parameter", place=str(mesh))
    known = True
    for dim, placement in enumerate(sharded.placements):
        if type(placement) is placements.Replicate:
            counts = counts and coordinate[dim] == 0
        elif type(placement) is placements.Shard:
            axis: int = placement.dim  # type: ignore[attr-defined]
            low, high = bounds[axis]
            step = -(-(high - low) // mesh.size(dim))
            first = low + step * coordinate[dim]
            bounds[axis] = min(first, high), min(first + step, high)
        else:
            known = False
    if not known or tuple(high - low for low, high in bounds) != tuple(sharded.to_local().shape):
        raise UnsupportedError(
            f"a parameter is placed as {sharded.placements} on {mesh}",
            place="sharded tensor",
            remedy="shard along one axis per mesh dimension, in the order of the mesh, as fully_shard does",
        )
    return Shard(mesh, tuple(bounds), counts)
