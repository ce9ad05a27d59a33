"""Modules of the user's of which an erased segment left nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from coppice.core.errors import UnsupportedError


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
    """Take the parameters called ``names`` out of ``model``, and the layers that had no others.

    Buffers stay where they are: what computes them (the angles of a rotary embedding, say) may still be called.
    """
    gone = set(names)
    layers: dict[str, str] = {}
    for name in sorted(gone & dict(model.named_parameters(remove_duplicate=False)).keys()):
        path, _, own = name.rpartition(".")
        layer = _layer(model, path, gone)
        if layer is None:
            model.get_submodule(path).register_parameter(own, None)
        else:
            layers[layer] = f"{type(model.get_submodule(layer)).__name__} {layer}"
    for layer, was in layers.items():
        parent, _, child = layer.rpartition(".")
        setattr(model.get_submodule(parent), child, Erased(was))


def _layer(model: nn.Module, path: str, gone: set[str]) -> str | None:
    """The outermost of torch's own layers around ``path`` of which nothing is left; a leaf of the user's will do."""
    found = None
    while path:
        module = model.get_submodule(path)
        if any(f"{path}.{name}" not in gone for name, _ in module.named_parameters()):
            break
        own = type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, CONTAINERS)
        if own or not module._modules:
            found = path
        path = path.rpartition(".")[0]
    return found


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
