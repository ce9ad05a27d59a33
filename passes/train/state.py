"""What a sparse optimizer writes into a checkpoint, and how a checkpoint of something else is told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from coppice.core.config import Config
from coppice.core.errors import UsageError
from coppice.core.space import Space

VERSION = 1
"""Of the layout of the state; a state of another version is refused."""


def facts_of(
    optimizer: str, base: torch.optim.Optimizer, space: Space, budget: Any, schedule: Any, options: Any
) -> dict[str, Any]:
    """JSON values that two runs must share to continue one another."""
    shapes = repr(sorted((name, tuple(t.shape)) for name, t in space.graph.tensors.items()))
    return {
        "version": VERSION,
        "optimizer": optimizer,
        "base": type(base).__name__,
        "model": f"{space.graph.name} {hashlib.sha256(shapes.encode()).hexdigest()[:16]}",
        "space": space.fingerprint,
        "budget": budget,
        "schedule": schedule,
        "options": options,
    }


def check_facts(state: Mapping[str, Any], own: Mapping[str, Any], place: str) -> None:
    """Raise `UsageError` that says in what the state differs from the optimizer it is loaded into."""
    found = state.get("facts", {}) if isinstance(state, Mapping) else {}
    differing = [key for key in own if key not in found or found[key] != own[key]]
    if differing:
        details = "; ".join(f"{key}: {found.get(key, 'nothing')} there, {own[key]} here" for key in differing)
        raise UsageError(
            f"the state belongs to another model, space or schedule ({details})",
            place=f"{place}.load_state_dict",
            remedy="build the optimizer with the same model, space options, budget and steps as when it was saved",
        )


def packed(facts: Mapping[str, Any], config: Config | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """One dict of plain values and copies of tensors."""
    own = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in values.items()}
    return {"facts": dict(facts), "config": None if config is None else config.to_json(), "values": own}


def unpacked(state: Mapping[str, Any]) -> tuple[Config | None, dict[str, Any]]:
    """The config and the values; tensors on the CPU, wherever a loader has put them."""
    config = None if state["config"] is None else Config.from_json(state["config"])
    values = dict(state["values"])
    for key, value in values.items():
        if isinstance(value, torch.Tensor):
            values[key] = value.detach().cpu().clone()
    return config, values
