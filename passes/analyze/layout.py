"""Where the boxes of a layered picture go: longest-path layers, barycentre order, straight chains, lanes for skips.

Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures" (1981), with each
sweep linear in boxes and edges. Edges that pass a layer are not threaded between its boxes: those of one source share a
lane beside the drawing, so that a skip connection is seen as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SWEEPS = 4


@dataclass(frozen=True)
class Layout:
    """``layer[v]`` and ``x[v]`` (the box's centre) by box; ``lanes[v]`` is the x of the lane that v's long edges take.

    ``rows`` are the boxes of each layer from left to right.
    """

    layer: list[int]
    x: list[float]
    rows: list[list[int]]
    lanes: dict[int, float]


def layout(edges: Sequence[tuple[int, int]], inputs: Sequence[bool], pitch: float, lane: float) -> Layout:
    """Place boxes 0, 1, ... joined by ``edges`` (u, v) with u < v; ``inputs`` marks those that stay at the top.

    ``pitch`` is the least distance between the centres of neighbours, ``lane`` that between lanes.
    """
    count = len(inputs)
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for u, v in edges:
        above[v].append(u)
        below[u].append(v)
    layer = _layers(above, below, inputs)
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for v, k in enumerate(layer):
        rows[k].append(v)
    _order(rows, above, below)
    x = _straighten(rows, layer, above, below, pitch)
    return Layout(layer, x, rows, _lanes(layer, rows, x, below, pitch, lane))


def _layers(above: list[list[int]], below: list[list[int]], inputs: Sequence[bool]) -> list[int]:
    """One below the lowest of what a box reads; what reads no input stands just above its first reader."""
    layer, loose = [0] * len(above), [False] * len(above)
    for v, sources in enumerate(above):
        loose[v] = not inputs[v] and all(loose[u] for u in sources)
        layer[v] = 1 + max((layer[u] for u in sources), default=-1)
    for v in reversed(range(len(above))):
        if loose[v] and below[v]:
            layer[v] = max(layer[v], min(layer[w] for w in below[v]) - 1)
    return layer


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Sort each row by the mean position of its neighbours, downwards and upwards in turn."""
    at = [0.0] * len(above)
    for row in rows:
        _number(row, at)
    for sweep in range(SWEEPS):
        neighbours = below if sweep % 2 else above
        for row in reversed(rows) if sweep % 2 else rows:
            mean = {v: _mean([at[u] for u in neighbours[v]], at[v]) for v in row}
            row.sort(key=mean.__getitem__)
            _number(row, at)


def _number(row: list[int], at: list[float]) -> None:
    for k, v in enumerate(row):
        at[v] = (k + 0.5) / len(row)


def _straighten(
    rows: list[list[int]], layer: list[int], above: list[list[int]], below: list[list[int]], pitch: float
) -> list[float]:
    """Move boxes over their neighbours in the next layers, as near as their order and ``pitch`` allow."""
    x = [0.0] * len(layer)
    for row in rows:
        for k, v in enumerate(row):
            x[v] = (k - (len(row) - 1) / 2) * pitch
    for sweep in range(2 * SWEEPS):
        neighbours = below if sweep % 2 else above
        for row in reversed(rows) if sweep % 2 else rows:
            wanted = []
            for v in row:
                near = [u for u in neighbours[v] if abs(layer[u] - layer[v]) == 1] or neighbours[v]
                wanted.append(_mean([x[u] for u in near], x[v]))
            for v, place in zip(row, _apart(wanted, pitch), strict=True):
                x[v] = place
    least = min(x, default=0.0)
    return [value - least for value in x]


def _apart(wanted: list[float], pitch: float) -> list[float]:
    """The ascending places at least ``pitch`` apart that are nearest to ``wanted`` in squares (isotonic regression)."""
    blocks: list[tuple[float, int]] = []
    for k, value in enumerate(wanted):
        total, count = value - k * pitch, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            more, many = blocks.pop()
            total, count = total + more, count + many
        blocks.append((total, count))
    shifts = [total / count for total, count in blocks for _ in range(count)]
    return [shift + k * pitch for k, shift in enumerate(shifts)]


def _lanes(
    layer: list[int], rows: list[list[int]], x: list[float], below: list[list[int]], pitch: float, lane: float
) -> dict[int, float]:
    """A lane for every box with an edge over a layer, the shortest innermost, right of all that it passes."""
    edge = [max(x[v] for v in row) + pitch / 2 for row in rows]
    last = {u: max(layer[v] for v in targets) for u, targets in enumerate(below) if targets}
    lanes: dict[int, float] = {}
    for u in sorted((u for u, low in last.items() if low - layer[u] > 1), key=lambda u: last[u] - layer[u]):
        passed = range(layer[u] + 1, last[u])
        lanes[u] = max(edge[k] for k in passed) + lane
        for k in passed:
            edge[k] = lanes[u]
    return lanes


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
