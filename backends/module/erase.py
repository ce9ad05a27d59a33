"""Modules of the user's of which an erased segment left nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from coppice.core.errors import UnsupportedError
from coppice.core.tensors import named_tensors


class Erased(nn.Module):
    """Stands where a module was that nothing calls any more; it has no parameters and refuses to run."""

    def __init__(self, was: str) -> None:
        super().__init__()
        self.was = was

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(
            "it was erased with a segment, and is called",
            place=self.was,
            remedy="call the model as in the example, or extract a config that keeps the segment",
        )

    def extra_repr(self) -> str:
        return self.was


def erase(model: nn.Module, names: Iterable[str]) -> None:
    """Take the tensors called ``names`` out of ``model``, and the modules that held nothing else."""
    gone = set(names)
    known = named_tensors(model)
    for name in sorted(gone & known.keys()):
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, Erased):
            continue
        held = {key for key, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None}
        rest = {f"{path}.{key}" for key in held - {"num_batches_tracked"}} - gone
        if path and not module._modules and not rest:
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, Erased(f"{type(module).__name__} {path}"))
        elif own in module._parameters:
            module.register_parameter(own, None)
        else:
            module.register_buffer(own, None)
