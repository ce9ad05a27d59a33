"""A graph as a standard ``nn.Module`` whose tensors keep their original names."""

from __future__ import annotations

import warnings

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from coppice.core.graph import Graph


def graph_model(graph: Graph, tensors: dict[str, torch.Tensor] | None = None) -> fx.GraphModule:
    """An ``fx.GraphModule`` in eval mode, called as the user's model is; it shares ``tensors`` (default: the graph's).

    Parameters and buffers stand under their fully qualified names, shared ones under all of them.
    """
    tensors = graph.tensors if tensors is None else tensors
    root = nn.Module()
    for name, tensor in tensors.items():
        place(root, name, tensor)
    body = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.fx.nodes:
        env[node] = body.node_copy(node, lambda n: env[n])
    names = [node.name for node in graph.placeholders()]
    body.set_codegen(_PyTreeCodeGen(_PyTreeInfo(_argument_names(graph, names), graph.in_spec, graph.out_spec)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch copies its own deprecated tree specs
        module = fx.GraphModule(root, body, class_name=graph.name if graph.name.isidentifier() else "Subnet")
    for alias, name in graph.aliases.items():  # no call reads them, so GraphModule left them out
        if name in tensors:
            place(module, alias, tensors[name])
    return module.eval()


def _argument_names(graph: Graph, names: list[str]) -> list[str]:
    args, kwargs = pytree.tree_unflatten(list(names), graph.in_spec)
    positional = [
        str(pytree.tree_leaves(arg)[0]) if pytree.tree_leaves(arg) else f"arg{i}" for i, arg in enumerate(args)
    ]
    return [*positional, *kwargs]


def place(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Register ``tensor`` under a dotted name, making the modules on the way and replacing what stands there."""
    owner = root
    *path, leaf = name.split(".")
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    held, other = owner._parameters, owner._buffers
    if not isinstance(tensor, nn.Parameter):
        held, other = other, held  # type: ignore[assignment]
    other.pop(leaf, None)
    held[leaf] = tensor  # type: ignore[assignment]
