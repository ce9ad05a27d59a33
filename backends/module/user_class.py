"""The user's own class with sliced parameters: attributes that state sizes are repaired, then the result must run.

Three sources say what an attribute must become: the new shapes of the parameters of torch's own layers, the arguments
of their calls, and, for modules of the user's, what their attributes were seen to be used for (`provenance`). Nothing
here is trusted: the caller compares the module with the graph and keeps the graph where they differ.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coppice.backends.module.attention import narrow
from coppice.backends.module.graph_model import place
from coppice.backends.module.norms import keep_count
from coppice.backends.module.provenance import Provenance, assign, solve
from coppice.core.extraction import Extraction, Recount, Sizes, low_name


def with_tensors(model: nn.Module, tensors: dict[str, torch.Tensor], aliases: dict[str, str]) -> nn.Module:
    """A deep copy of ``model`` in eval mode that holds copies of ``tensors``, shared ones shared."""
    result = copy.deepcopy(model)
    own = {n: t.detach().clone() for n, t in tensors.items()}
    ready = {
        n: nn.Parameter(t, tensors[n].requires_grad) if isinstance(tensors[n], nn.Parameter) else t
        for n, t in own.items()
    }
    known = {
        *dict(result.named_parameters(remove_duplicate=False)),
        *dict(result.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in ready.items():
        if name in known:
            place(result, name, tensor)
    for alias, name in aliases.items():
        if alias in known and name in ready:
            place(result, alias, ready[name])
    for module in result.modules():
        if isinstance(module, nn.RNNBase):  # holds its weights a second time, in a list
            module._init_flat_weights()
    return result.eval()


def repair(model: nn.Module, extraction: Extraction, found: Provenance | None = None) -> None:
    """Set the size attributes of ``model``, which holds the small tensors, to what its parameters and calls now are.

    ``found`` says what attributes the full model was seen to use where. Norms that must count units which left are made
    to (`coppice.backends.module.norms`), and so is attention of torch's own (`coppice.backends.module.attention`).
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    rest = [sizes for sizes in extraction.sizes if not _named(modules, sizes)]
    if found is not None:
        assign(model, found, solve(found, rest))
    for path, module in modules.items():
        _from_shapes(module)
        if isinstance(module, nn.MultiheadAttention):
            narrow(module, path, extraction.kept)
    _norms(modules, extraction.recounts)
    for bias in extraction.folded:
        low = extraction.graph.tensors.get(low_name(bias))
        if low is not None:
            add_low(model, bias, low)


def add_low(model: nn.Module, bias: str, low: torch.Tensor) -> None:
    """Let the layer that owns ``bias`` add what was rounded off it, held in a buffer beside it, to its result."""
    path, _, _ = bias.rpartition(".")
    layer, name = model.get_submodule(path), low_name(bias).rpartition(".")[2]
    weight = layer.get_parameter("weight")
    layer.register_buffer(name, low.detach().clone())
    layer.register_forward_hook(AddLow(name, weight.ndim - 2))


@dataclass(frozen=True)
class AddLow:
    """A forward hook that adds the buffer ``name`` along the result's axis -1 - ``trailing``."""

    name: str
    trailing: int

    def __call__(self, module: nn.Module, inputs: Any, result: torch.Tensor) -> torch.Tensor:
        low: torch.Tensor = getattr(module, self.name)
        return result + low.reshape(-1, *[1] * self.trailing)


def _named(modules: dict[str, nn.Module], sizes: Sizes) -> bool:
    """Whether the argument is an attribute of the same name of the layer that makes the call: sets it."""
    owner = modules.get(sizes.modules[-1]) if sizes.modules else None
    if owner is None or len(sizes.old) != 1 or vars(owner).get(sizes.argument) != sizes.old[0]:
        return False
    setattr(owner, sizes.argument, sizes.new[0])
    return True


def _norms(modules: dict[str, nn.Module], recounts: Iterable[Recount]) -> None:
    done: set[int] = set()
    for recount in recounts:
        norm = modules.get(recount.modules[-1]) if recount.modules else None
        if norm is not None and id(norm) not in done:
            done.add(id(norm))
            keep_count(norm, recount.present, recount.full)


def _from_shapes(module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, torch.Tensor) else ()
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, per_group = shape[:2]
        module.out_channels = per_group * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        mean = module.running_mean
        module.num_features = shape[0] if shape else len(mean) if mean is not None else module.num_features
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and shape:
        module.normalized_shape = shape
    elif isinstance(module, nn.GroupNorm) and shape:
        module.num_channels = shape[0]
    elif isinstance(module, nn.RNNBase):
        _recurrent(module)
    elif isinstance(module, nn.RNNCellBase):
        module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]


def _recurrent(module: nn.RNNBase) -> None:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    read, again = getattr(module, "weight_ih_l0"), getattr(module, "weight_hh_l0")  # noqa: B009
    module.input_size, module.hidden_size = read.shape[1], read.shape[0] // gates
    module.proj_size = again.shape[1] if hasattr(module, "weight_hr_l0") else 0
