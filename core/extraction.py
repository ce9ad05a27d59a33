"""What extraction hands to the back ends: the small graph, what was kept, and which numbers changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from coppice.core.graph import Graph
from coppice.core.solve import Bools


@dataclass(frozen=True)
class Literal:
    """A number in a call that changed with the cut: back ends look for the attribute it came from."""

    modules: tuple[str, ...]
    argument: str
    old: int
    new: int


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
    ``graph.tensors`` holds the sum, rounded to its own precision.
    """

    graph: Graph
    kept: dict[str, tuple[Bools | None, ...]]
    literals: tuple[Literal, ...]
    recounts: tuple[Recount, ...] = ()
    folded: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def exact(self, full: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The small graph's tensors with folded biases in fp64, from the ``full`` tensors of the masked model."""
        result = dict(self.graph.tensors)
        for name, offset in self.folded.items():
            result[name] = sliced(full[name].detach().double() + offset.to(full[name].device), self.kept.get(name, ()))
        return result


def sliced(tensor: torch.Tensor, masks: tuple[Bools | None, ...]) -> torch.Tensor:
    """A copy of ``tensor`` with only the positions that ``masks`` keep, axis by axis."""
    data = tensor.detach()
    for k, mask in enumerate(masks):
        if mask is not None:
            data = data.index_select(k, torch.from_numpy(mask.nonzero()[0]).to(data.device))
    return data.clone(memory_format=torch.contiguous_format)
