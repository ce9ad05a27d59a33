"""Checkpoints of a sharded training, through `torch.distributed.checkpoint`."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from coppice.core.errors import UsageError
from coppice.passes.train.engine import PruningOptimizer


class ShardedState:
    """The model, the base optimizer and the choice of units as one stateful object: every rank writes its shards.

        torch.distributed.checkpoint.save({"training": ShardedState(model, optimizer)}, checkpoint_id=folder)
        torch.distributed.checkpoint.load({"training": ShardedState(model, optimizer)}, checkpoint_id=folder)

    ``optimizer.state_dict()`` will not do there: a loader only fills in what a fresh optimizer has, and it has no
    moments and no choice yet.
    """

    def __init__(self, model: nn.Module, optimizer: PruningOptimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        """``model`` and ``base`` by parameter name, sharded as they are; ``pruning`` as one line of text."""
        model, base = get_state_dict(self.model, self.optimizer.base)
        return {"model": model, "base": base, "pruning": json.dumps(_plain(self.optimizer.pruning_state()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the state was taken; `UsageError` where it is of another model, space or schedule."""
        try:
            pruning = _tensors(json.loads(state_dict["pruning"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"the checkpoint holds no choice of units ({error})",
                place="ShardedState.load_state_dict",
                remedy="save the training as {'training': ShardedState(model, optimizer)}",
            ) from None
        self.optimizer.check_state(pruning)
        set_state_dict(
            self.model,
            self.optimizer.base,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["base"],
        )
        self.optimizer.load_pruning_state(pruning)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Tensors as {"float64": [...]}; a float's text gives back the same bits."""
    values = {
        key: {str(value.dtype).removeprefix("torch."): value.tolist()} if isinstance(value, torch.Tensor) else value
        for key, value in state["values"].items()
    }
    return {**state, "values": values}


def _tensors(state: dict[str, Any]) -> dict[str, Any]:
    kinds = {"float64": torch.float64, "bool": torch.bool}
    values = dict(state["values"])
    for key, value in values.items():
        if isinstance(value, dict):
            [(kind, numbers)] = value.items()
            values[key] = torch.tensor(numbers, dtype=kinds[kind])
    return {**state, "values": values}
