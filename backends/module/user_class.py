"""The user's own class with sliced parameters: attributes that state sizes are repaired, then the result must run.

Three sources say what an attribute must become: the new shapes of the parameters of torch's own layers, the arguments
of their calls, and, for modules of the user's, what their attributes were seen to be used for (`provenance`). Nothing
here is trusted: the caller compares the module with the graph and keeps the graph where they differ.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coppice.backends.module.attention import Heads, heads_left, narrow
from coppice.backends.module.erase import erase
from coppice.backends.module.graph_model import place
from coppice.backends.module.norms import keep_count
from coppice.backends.module.provenance import Attribute, Provenance, assign, changes, solve
from coppice.core.extraction import Extraction, Recount, Sizes, low_name
from coppice.core.tensors import named_tensors


def with_tensors(model: nn.Module, tensors: dict[str, torch.Tensor], aliases: dict[str, str]) -> nn.Module:
    """A deep copy of ``model`` in eval mode that holds copies of ``tensors``, shared ones shared."""
    result = copy.deepcopy(model)
    own = {n: t.detach().clone() for n, t in tensors.items()}
    ready = {
        n: nn.Parameter(t, tensors[n].requires_grad) if isinstance(tensors[n], nn.Parameter) else t
        for n, t in own.items()
    }
    known = named_tensors(result)
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


@dataclass(frozen=True)
class Repairs:
    """What turns a model with small tensors into one that runs: plain data, which a saved subnet carries along."""

    attributes: tuple[Attribute, ...] = ()
    norms: tuple[Recount, ...] = ()
    attention: tuple[Heads, ...] = ()
    lows: tuple[str, ...] = ()
    erased: tuple[str, ...] = ()


def plan(model: nn.Module, extraction: Extraction, found: Provenance | None = None) -> Repairs:
    """The repairs of ``model`` (any copy of the user's) that ``extraction`` asks for.

    ``found`` says what attributes the full model was seen to use where. Norms that must count units which left are made
    to (`coppice.backends.module.norms`), and so is attention of torch's own (`coppice.backends.module.attention`).
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    attributes, rest = [], []
    for sizes in extraction.sizes:
        own = _named(modules, sizes)
        rest += [sizes] if own is None else []
        attributes += [] if own is None else [own]
    if found is not None:
        attributes += changes(found, solve(found, rest))
    known = [(path, m) for path, m in modules.items() if isinstance(m, nn.MultiheadAttention)]
    heads = [heads_left(module, path, extraction.kept) for path, module in known]
    return Repairs(
        tuple(attributes),
        tuple({recount.modules[-1]: recount for recount in extraction.recounts if recount.modules}.values()),
        tuple(left for left in heads if left is not None),
        tuple(bias for bias in extraction.folded if low_name(bias) in extraction.graph.tensors),
        extraction.erased,
    )


def apply(model: nn.Module, repairs: Repairs, tensors: Mapping[str, torch.Tensor]) -> None:
    """Repair ``model``, which holds the small ``tensors``, in place."""
    erase(model, repairs.erased)
    assign(model, repairs.attributes)  # first: shapes know better what attributes of torch's own layers are
    modules = dict(model.named_modules(remove_duplicate=False))
    for module in modules.values():
        _from_shapes(module)
    for left in repairs.attention:
        attention = modules[left.path]
        if isinstance(attention, nn.MultiheadAttention):  # not erased
            narrow(attention, left)
    done: set[int] = set()
    for recount in repairs.norms:
        norm = modules.get(recount.modules[-1])
        if norm is not None and id(norm) not in done:
            done.add(id(norm))
            keep_count(norm, recount.present, recount.full)
    for bias in repairs.lows:
        add_low(model, bias, tensors[low_name(bias)])


def _named(modules: Mapping[str, nn.Module], sizes: Sizes) -> Attribute | None:
    """The attribute of the same name as the argument, of the layer that makes the call, where there is one."""
    owner = modules.get(sizes.modules[-1]) if sizes.modules else None
    if owner is None or len(sizes.old) != 1 or vars(owner).get(sizes.argument) != sizes.old[0] or sizes.new[0] is None:
        return None
    return Attribute(sizes.modules[-1], sizes.argument, None, sizes.new[0], None)


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
