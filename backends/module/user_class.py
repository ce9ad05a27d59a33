"""The user's own class with sliced parameters: attributes that state sizes are repaired, then the result must run.

Two sources say what an attribute must become: the new shapes of the parameters of torch's own layers, and the literals
that extraction rewrote, which usually came from an attribute of the module that made the call. Nothing here is trusted:
the caller compares the module with the graph and keeps the graph where they differ.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable

import torch
from torch import nn

from coppice.backends.module.graph_model import place
from coppice.backends.module.norms import keep_count
from coppice.core.extraction import Literal, Recount


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


def repair(model: nn.Module, literals: Iterable[Literal], recounts: Iterable[Recount] = ()) -> None:
    """Set the size attributes of ``model`` and its parts to what their parameters and calls now are.

    Norms that must count units which left (``recounts``) are made to: see `coppice.backends.module.norms`.
    """
    _from_literals(model, literals)  # matches the old sizes, so it comes first
    for module in model.modules():
        _from_shapes(module)
    modules = dict(model.named_modules(remove_duplicate=False))
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
    elif isinstance(module, nn.LayerNorm) and shape:
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
    """Any of its whole numbers may have been taken for a size that changed, so all are set."""
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    read, again = getattr(module, "weight_ih_l0"), getattr(module, "weight_hh_l0")  # noqa: B009
    module.input_size, module.hidden_size = read.shape[1], read.shape[0] // gates
    module.proj_size = again.shape[1] if hasattr(module, "weight_hr_l0") else 0
    module.num_layers = sum(re.fullmatch(r"weight_ih_l\d+", name) is not None for name in module._flat_weights_names)


def _from_literals(model: nn.Module, literals: Iterable[Literal]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted: dict[tuple[int, str], set[int]] = {}
    owners: dict[int, nn.Module] = {}
    for literal in literals:
        for name in reversed(literal.modules):
            module = modules.get(name)
            hits = [] if module is None else [k for k, v in vars(module).items() if type(v) is int and v == literal.old]
            if module is not None and hits:
                owners[id(module)] = module
                for attribute in hits:
                    wanted.setdefault((id(module), attribute), set()).add(literal.new)
                break
    for (owner, attribute), values in wanted.items():
        if len(values) == 1:
            setattr(owners[owner], attribute, values.pop())
