"""Graphs before and after a cut, as text: each file holds a title, the input, and what is left of it at half width."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import coppice
from coppice.core.graph import Graph
from coppice.core.text import from_text, to_text
from coppice.passes.extract.slice import cut

FILES = sorted(Path(__file__).parent.glob("*.txt"))


def read(path: Path) -> tuple[str, str]:
    found = re.fullmatch(r".*?\n\n--- before\n(.*)--- after\n(.*)", path.read_text(), flags=re.S)
    assert found is not None, f"{path.name} has no `--- before` and `--- after`"
    return found[1], found[2]


def parse(text: str) -> Graph:
    """The graph, with ones for tensors of the shapes that the text gives; running statistics are buffers."""
    tensors: dict[str, torch.Tensor] = {}
    for sizes, name in re.findall(r": f32\[([\d, ]+)\] = tensor\('([\w.]+)'\)", text):
        data = torch.ones([int(size) for size in sizes.split(",")])
        tensors[name] = data if "running" in name else nn.Parameter(data)
    return from_text(text, tensors)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_half_of_every_family_leaves(path: Path) -> None:
    before, after = read(path)
    graph = parse(before)
    assert to_text(graph) == before
    space = coppice.build_space(graph)
    first = {family.name: -np.arange(float(family.size)) for family in space.families}
    config = space.with_widths({f.name: f.at_most(f.size / 2) for f in space.families}, first)
    got = to_text(cut(space, config).graph)
    assert got == after, "\n" + "\n".join(difflib.unified_diff(after.splitlines(), got.splitlines(), lineterm=""))


def test_there_are_goldens() -> None:
    assert len(FILES) >= 3


class ThroughTheBatch(nn.Module):
    """Channels that pass through the batch axis, whose size then depends on them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        z: torch.Tensor = self.out(y.reshape(-1, 1, *y.shape[2:]).tanh().view(y.shape))
        return z


def test_sizes_in_symbols_parse_back_as_they_are_written() -> None:
    graph = coppice.trace(ThroughTheBatch().eval(), torch.randn(2, 3, 4, 4))
    space = coppice.build_space(graph)
    small = coppice.extract(space, space.uniform(0.5)).graph
    text = to_text(small)
    assert re.search(r"f32\[4\*\w+\*4//8, 1, 4, 4\] = aten.reshape", text)
    back = from_text(text, small.tensors, in_spec=small.in_spec, out_spec=small.out_spec, aliases=small.aliases)
    assert to_text(back) == text
