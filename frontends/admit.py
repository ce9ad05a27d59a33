"""What can be traced at all: wrappers taken off, and models and inputs refused that no trace could make sense of."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import nn

from coppice.core.errors import TraceError, UsageError
from coppice.core.tensors import check_finite

Call = tuple[tuple[Any, ...], dict[str, Any]]


def unwrap(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The module inside ``torch.compile``, `DataParallel` and `DistributedDataParallel`, and a note where one was."""
    notes: list[str] = []
    while True:
        inner = _inside(model)
        if inner is None:
            return model, notes
        notes.append(f"the module inside {type(model).__name__} was traced")
        model = inner


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return cast("nn.Module", model.module)
    compiled = sys.modules.get("torch._dynamo.eval_frame")  # loaded by torch.compile, and slow to load for nothing
    if compiled is not None and isinstance(model, compiled.OptimizedModule):
        return cast("nn.Module", model._orig_mod)
    return None


def admit(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The example inputs as the model takes them (on meta where it is); raises where tracing is bound to fail."""
    _check_modules(model)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    _check_layouts(tensors)
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if not leaves:
        raise UsageError("no tensor among the example inputs", place="trace", remedy="pass at least one example tensor")
    _check_layouts([("an example input", leaf) for leaf in leaves])
    empty = next((tuple(leaf.shape) for leaf in leaves if not leaf.numel()), None)
    if empty is not None:
        raise UsageError(
            f"an example input of shape {empty} is empty",
            place="trace",
            remedy="give every axis at least one position: the checks run the model on these inputs",
        )
    devices = {str(tensor.device) for _, tensor in tensors}
    if devices == {"meta"}:
        meta = pytree.tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, (args, kwargs))
        return cast("Call", meta)
    given = {str(leaf.device) for leaf in leaves}
    if len(devices) > 1 or (devices and given != devices):
        raise UsageError(
            f"the model is on {_listed(devices)} and the example inputs on {_listed(given)}",
            place="trace",
            remedy=f"move both to one device, for example model.to({min(given)!r})",
        )
    check_finite(tensors)
    return args, kwargs


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names))


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"module {name}" if name else type(model).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                "it is a scripted module, whose Python code is gone",
                place=where,
                remedy="trace the model before torch.jit.script or torch.jit.trace, and script the subnet",
            )
        if any(isinstance(value, torch.ScriptObject) for value in vars(module).values()):
            raise TraceError(
                f"{type(module).__name__} keeps its weights packed, as quantised modules do",
                place=where,
                remedy="trace the model before quantisation, and quantise the subnet",
            )
        lazy = [key for key, tensor in module._parameters.items() if nn.parameter.is_lazy(tensor)]
        if lazy:
            raise UsageError(
                f"its {lazy[0]} has no shape yet",
                place=where,
                remedy="call the model once on the example inputs, which gives lazy modules their shapes",
            )


def _check_layouts(tensors: list[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors:
        if tensor.layout is not torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            raise TraceError(
                f"it is a sparse tensor ({kind}), of which no axis can be cut",
                place=name,
                remedy="keep it dense: tensor.to_dense(), and make the subnet's weights sparse instead",
            )
