"""An optimizer moved from one set of parameters to slices of them: its groups, its state, and its schedulers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from coppice.core.errors import UnsupportedError, UsageError
from coppice.core.extraction import sliced
from coppice.core.solve import Bools

Masks = tuple[Bools | None, ...]
Build = Callable[[list[dict[str, Any]]], Optimizer]

PLACE = "carry_over"


@dataclass(frozen=True, eq=False)
class Heir:
    """The parameter that takes the place of one called ``name``: its positions that ``masks`` keep, axis by axis."""

    name: str
    parameter: Tensor
    masks: Masks = ()


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer that makes the steps, inside wrappers that hold it as ``base``."""
    while isinstance(inner := getattr(optimizer, "base", None), Optimizer):
        optimizer = inner
    return optimizer


def transfer(base: Optimizer, heirs: Mapping[Tensor, Heir | None], build: Build | None = None) -> Optimizer:
    """An optimizer of ``base``'s class with the same groups and state, over heirs in place of parameters.

    A parameter whose heir is None leaves its group; one that ``heirs`` lacks stays in it, with a copy of its state.
    ``build`` makes the optimizer from the groups; by default its class is called with ``base.defaults``.

    Raises `UnsupportedError` for state that cannot be cut, `UsageError` where the class cannot be called like that.
    """
    state = {}
    for parameter, held in base.state.items():
        heir = heirs.get(parameter, Heir("", parameter))
        if heir is not None:
            state[heir.parameter] = {key: _part(value, key, parameter, heir, base) for key, value in held.items()}
    groups = [_group(group, heirs) for group in base.param_groups]
    if not any(group["params"] for group in groups):
        raise UsageError("none of its parameters is left", place=PLACE, remedy="there is nothing left to train")
    made = (build or _like(base))([dict(group) for group in groups])
    if not isinstance(made, Optimizer) or _members(made.param_groups) != _members(groups):
        raise UsageError(
            "build did not return an optimizer over the groups it was given",
            place=PLACE,
            remedy="pass build=lambda groups: MyOptimizer(groups, ...)",
        )
    for own, group in zip(made.param_groups, groups, strict=True):
        own.update(group)
    made.defaults = copy.deepcopy(base.defaults)
    made.state.update(state)
    return made


def _members(groups: list[dict[str, Any]]) -> list[list[int]]:
    return [[id(p) for p in group["params"]] for group in groups]


def _group(group: Mapping[str, Any], heirs: Mapping[Tensor, Heir | None]) -> dict[str, Any]:
    stay = [heirs.get(p, Heir("", p)) for p in group["params"]]
    result = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
    result["params"] = [heir.parameter for heir in stay if heir is not None]
    if "param_names" in group:
        result["param_names"] = [n for n, heir in zip(group["param_names"], stay, strict=True) if heir is not None]
    return result


def _like(base: Optimizer) -> Build:
    """Calls the class of ``base`` with those of its defaults that it takes."""
    kind = type(base)
    takes = inspect.signature(kind).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    options = {name: copy.deepcopy(value) for name, value in base.defaults.items() if every or name in takes}

    def build(groups: list[dict[str, Any]]) -> Optimizer:
        try:
            return kind(groups, **options)
        except TypeError as error:
            raise UsageError(
                f"{kind.__name__} cannot be made from its defaults ({', '.join(options) or 'none'}): {error}",
                place=PLACE,
                remedy=f"pass build=lambda groups: {kind.__name__}(groups, ...)",
            ) from error

    return build


def _part(value: Any, key: str, full: Tensor, heir: Heir, base: Optimizer) -> Any:
    """One entry of a parameter's state. Along axes of the parameter's own size it is cut; scalars are copied."""
    cut = any(mask is not None for mask in heir.masks)
    tensor = isinstance(value, Tensor)
    if not cut or not (tensor or _holds_tensors(value)) or (tensor and value.numel() == 1):
        return copy.deepcopy(value)
    if tensor and value.ndim == full.ndim and all(a in (b, 1) for a, b in zip(value.shape, full.shape, strict=True)):
        kept = zip(heir.masks, value.shape, full.shape, strict=True)
        return sliced(value, tuple(mask if own == size else None for mask, own, size in kept))
    what = f"has shape {tuple(value.shape)}" if tensor else f"is a {type(value).__name__} of tensors"
    raise UnsupportedError(
        f"{type(base).__name__} keeps {key!r} of it, which {what}; the parameter has shape {tuple(full.shape)}",
        place=f"{PLACE}: parameter {heir.name}",
        remedy="state is cut along the axes of its parameter; start a new optimizer over subnet.module.parameters()",
    )


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in torch.utils._pytree.tree_leaves(value))


# ---- schedulers ------------------------------------------------------------------------------------------------------


def check_schedulers(schedulers: Iterable[Any], before: tuple[Optimizer, ...]) -> None:
    """Raise `UsageError` for a scheduler that drives none of the optimizers ``before``."""
    for scheduler in schedulers:
        drives = getattr(scheduler, "optimizer", None)
        if not any(drives is own for own in before):
            what = "no optimizer" if drives is None else f"another {type(drives).__name__}"
            raise UsageError(
                f"the {type(scheduler).__name__} drives {what}",
                place=f"{PLACE}(schedulers=...)",
                remedy="pass the schedulers that were built over this optimizer, or over its base",
            )


def reattach(scheduler: Any, now: Optimizer) -> None:
    """Let ``scheduler``, and those it is made of, drive ``now``, which holds the same groups; their counts go on."""
    scheduler.optimizer = now
    if (
        getattr(scheduler, "_step_count", 0) == 1
    ):  # torch then asks whether the optimizer has made a step; the old one has
        scheduler._step_count = 2
    for value in vars(scheduler).values():
        for inner in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(getattr(inner, "optimizer", None), Optimizer) and inner.optimizer is not now:
                reattach(inner, now)
