"""What extraction hands to the back ends: the small graph, what was kept, and which numbers changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from coppice.core.graph import Graph
from coppice.core.solve import Bools


@dataclass(frozen=True)
class Sizes:
    """The numbers of one argument of a call made in ``modules``, before and after the cut; None where one is dynamic.

    Back ends look for the attributes that they came from. ``changed`` says whether the argument did, numbers or not.
    """

    modules: tuple[str, ...]
    argument: str
    old: tuple[int | None, ...]
    new: tuple[int | None, ...]
    changed: bool


@dataclass(frozen=True)
class Recount:
    """An average, made somewhere in ``modules``, over ``present`` positions that must count as ``full``."""

    modules: tuple[str, ...]
    present: int
    full: int


@dataclass(frozen=True, eq=False)
class Extraction:
    """``kept[name][k]`` are the positions that stay along axis k of a tensor (None: all of them).

    ``folded[name]`` is what constants of removed units add to a bias, in fp64 and at its full size; the bias in
    ``graph.tensors`` holds the sum, rounded to its own precision, and the buffer `low_name` what was rounded off: the
    graph adds both, so that the subnet is exact in fp64 too. ``nodes`` are the nodes of the small graph that stand for
    those of the full one, but for those that only erased segments needed. ``left`` is the one operand that a sum was
    left with, ``joined`` the modules (outermost first) around each erased segment and its join, and ``erased`` are the
    tensors that went with one, by all their names.
    """

    graph: Graph
    kept: dict[str, tuple[Bools | None, ...]]
    sizes: tuple[Sizes, ...]
    recounts: tuple[Recount, ...] = ()
    folded: Mapping[str, torch.Tensor] = field(default_factory=dict)
    nodes: Mapping[fx.Node, fx.Node] = field(default_factory=dict)
    left: Mapping[fx.Node, fx.Node] = field(default_factory=dict)
    joined: tuple[tuple[str, ...], ...] = ()
    erased: tuple[str, ...] = ()

    def node(self, full: fx.Node) -> fx.Node | None:
        """The node that stands for ``full``, or for its operand where ``full`` did nothing; None where it is gone."""
        if full not in self.nodes:
            return None
        while self.nodes[full]._erased:
            full = self.left.get(full) or full.all_input_nodes[0]
        return self.nodes[full]


def low_name(bias: str) -> str:
    """The buffer that holds what a folded bias lost when it was rounded."""
    return f"{bias}_low"


def sliced(tensor: torch.Tensor, masks: tuple[Bools | None, ...]) -> torch.Tensor:
    """A copy of ``tensor`` with only the positions that ``masks`` keep, axis by axis."""
    data = tensor.detach()
    for k, mask in enumerate(masks):
        if mask is not None:
            data = data.index_select(k, torch.from_numpy(mask.nonzero()[0]).to(data.device))
    return data.clone(memory_format=torch.contiguous_format)
