"""What a subnet must equal, made without coppice's own reference; and comparisons of nested results."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from coppice import Config, Space
from coppice.core.graph import Graph, Value

Masks = Mapping[str, tuple["np.ndarray[Any, Any] | None", ...]]


@torch.no_grad()
def zero(model: nn.Module, masks: Masks) -> None:
    """Set the masked positions of the model's own tensors to zero, in place."""
    for name, axes in masks.items():
        owner, _, leaf = name.rpartition(".")
        tensor = getattr(model.get_submodule(owner), leaf)
        for axis, mask in enumerate(axes):
            if mask is not None:
                tensor.index_fill_(axis, torch.from_numpy(np.flatnonzero(mask)), 0.0)


def masked(model: nn.Module, space: Space, config: Config) -> nn.Module:
    """A copy of ``model`` in fp64 with the slices of all removed units set to zero."""
    result = copy.deepcopy(model).double().eval()
    zero(result, space.zero_masks(config))
    return result


def gap(reference: Any, got: Any) -> float:
    """The largest difference between two nested results, relative to the larger of one and the reference's peak."""
    left, right = tree_leaves(reference), tree_leaves(got)
    assert len(left) == len(right), f"{len(left)} results became {len(right)}"
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if not isinstance(a, Tensor):
            assert a == b
            continue
        assert a.shape == b.shape, f"{tuple(a.shape)} became {tuple(b.shape)}"
        assert bool(torch.isfinite(a).all()), "the reference is not finite"
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1.0)) if a.numel() else 0.0)
    return worst


def single(space: Space, family: int, unit: int) -> Config:
    """The config that removes one unit of one family."""
    keep: dict[str, object] = {f.name: range(f.size) for f in space.families}
    chosen = space.families[family]
    keep[chosen.name] = [i for i in range(chosen.size) if i != unit]
    return Config.of(keep)


class Watched(fx.Interpreter):
    """Runs the graph and compares the shape and dtype of every value with what the graph notes of it."""

    def __init__(self, graph: Graph) -> None:
        root = nn.Module()
        self._tensors = graph.tensors
        super().__init__(fx.GraphModule(root, fx.Graph()), graph=graph.fx)
        self.graph_ = graph

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._tensors[str(target)]

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op != "output":
            same_shape(n, n.meta["value"], result)
        return result


def same_shape(node: fx.Node, noted: Any, result: Any) -> None:
    """Fail unless ``result`` has the shapes and dtypes that are ``noted``."""
    if isinstance(noted, tuple):
        assert len(noted) == len(result), node
        for one, value in zip(noted, result, strict=True):
            same_shape(node, one, value)
    elif isinstance(noted, Value) and noted.dtype is not None:
        assert tuple(result.shape) == noted.shape, f"{node}: {tuple(result.shape)} is noted as {noted.shape}"
        assert result.dtype == noted.dtype, f"{node}: {result.dtype} is noted as {noted.dtype}"
    elif isinstance(noted, Value) and noted.hint is not None:
        assert int(result) == noted.hint, f"{node}: {result} is noted as {noted.hint}"


def parameter_count(tensors: Mapping[str, Tensor]) -> int:
    """How many numbers the trained tensors among ``tensors`` hold."""
    return sum(t.numel() for t in tensors.values() if isinstance(t, nn.Parameter))
