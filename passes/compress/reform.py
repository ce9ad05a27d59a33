"""Least-squares reformation: what the cut took from layers' results is made up for by the inputs that stay.

W' = W C[:, K] (C_KK + ridge)^-1 with C = X X^T over calibration inputs (He et al., Channel Pruning, 2017), written as a
correction: with E what the layer's result lacks of the full model's, W' = W_K + E X_K^T (X_K X_K^T + ridge)^-1, so that
the ridge draws towards the present weights, and directions in which there is no data keep them. Layers are corrected in
the order of the graph, from the inputs that the layers before them, already corrected, give them. Each layer's ridge is
the one that does best when it is fitted on half of the samples and tried on the other half; where none helps there, the
weight stays (docs/decisions/0008-reformation.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from coppice.core.calls import Call
from coppice.core.config import Config
from coppice.core.errors import UsageError
from coppice.core.extraction import Extraction, sliced
from coppice.core.graph import Graph
from coppice.core.labels import Label
from coppice.core.ops import Op, lookup
from coppice.core.solve import Bools
from coppice.core.space import Space

RIDGES = (math.inf, 10.0, 1.0, 1e-1, 1e-2, 1e-3)
"""Relative to the mean square of a layer's inputs; the first of equally good ones is taken."""
LARGEST = 6000
"""Inputs times window of a layer: a matrix C of 288 MB in fp64, of which three are held. Larger ones are left."""
CHUNK = 1 << 24
"""Numbers of unfolded input that are held at once."""

Progress = Callable[[str, float], None]
"""Takes what is being done, and the part of all that is done."""
Batch = tuple[tuple[Any, ...], dict[str, Any], Any]


@dataclass(frozen=True)
class Fit:
    """What a layer's result lacks of the full model's, as a share of its variance: before, and after on unseen samples.

    ``ridge`` is what was chosen; infinite where the weight stayed.
    """

    before: float
    after: float
    ridge: float


@dataclass(frozen=True)
class Reformation:
    """New values of tensors of the small graph, how well each weight fits, and why others with cut inputs do not."""

    tensors: dict[str, Tensor]
    fits: dict[str, Fit]
    left: dict[str, str]


def reform(
    space: Space,
    config: Config,
    extraction: Extraction,
    tensors: Mapping[str, Tensor],
    batches: Sequence[Batch],
    progress: Progress = lambda _, __: None,
) -> Reformation:
    """Correct every layer whose inputs the cut changed, so that it gives what it gave in the full model, nearly.

    ``tensors`` are those of the small graph now, by name; they are not changed. For each of L layers both graphs run up
    to it on all ``batches``: about L/2 passes of both over the data. Memory is one batch and three matrices C in fp64.

    Raises `UsageError` where there is no batch, or a layer's inputs are not finite.
    """
    if not batches:
        raise UsageError("no calibration batch was given", place="reform", remedy="pass at least one batch of inputs")
    changed: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    fits: dict[str, Fit] = {}
    gone = space.removed(config)
    layers = list(_consumers(space.graph, extraction, left))
    for done, node in enumerate(layers):
        progress(f"fit {node.name}", done / len(layers))
        layer = _Layer(space, extraction, gone, node)
        change, shift, fits[layer.weight] = solve(
            *layer.halves({**tensors, **changed}, batches), layer.bias is not None
        )
        changed |= layer.corrected(tensors, change, shift)
    return Reformation(changed, fits, left)


def _consumers(graph: Graph, extraction: Extraction, left: dict[str, str]) -> Iterator[fx.Node]:
    """Calls that read what the cut changed through a weight of their own, in graph order; ``left`` says why not others.

    Changed is what has a cut or an erased operand, or a changed one: all that comes after the cut.
    """
    changed: set[fx.Node] = set()
    for node in graph.fx.nodes:
        if node.op == "get_attr" and any(mask is not None for mask in extraction.kept.get(str(node.target), ())):
            changed.add(node)
        data = [n for n in node.all_input_nodes if n.op != "get_attr"]
        reads = any(n in changed or extraction.node(n) is None for n in data)
        if reads or any(n in changed for n in node.all_input_nodes):
            changed.add(node)
        op = lookup(node.target) if node.op == "call_function" and reads else None
        if op is None or extraction.node(node) is None:
            continue
        for tensor in (n for n in node.all_input_nodes if n.op == "get_attr"):
            if any(op.role(node, tensor, axis) == "in" for axis in range(graph.tensors[str(tensor.target)].ndim)):
                why = _refused(graph, extraction, op, node, tensor)
                if why is None:
                    yield node
                else:
                    left[str(tensor.target)] = why


def _refused(graph: Graph, extraction: Extraction, op: Op, node: fx.Node, weight: fx.Node) -> str | None:
    if op.columns is None:
        return f"the op table does not say how `{node.name}` is linear in it"
    if not _own(weight, graph):
        return "it is shared, or no parameter"
    if (why := op.columns.refuse(Call(node))) is not None:
        return why
    size = extraction.graph.tensors[str(weight.target)][0].numel()
    return f"its inputs times its window are {size:,}, too many to solve for" if size > LARGEST else None


class _Layer:
    """One call in both graphs, and where its result stays."""

    def __init__(self, space: Space, extraction: Extraction, gone: Bools, node: fx.Node) -> None:
        op, label = lookup(node.target), space.labels[node]
        assert op is not None and op.columns is not None and isinstance(label, Label)
        self.columns, self.call = op.columns, Call(node)
        small = extraction.node(node)
        assert small is not None
        self.small = Call(small)
        self.keep = tuple(None if (m := space.axis_keep(axis, gone)).all() else m for axis in label.axes)
        self.weight = str(self.call["weight"].target)
        self.width = extraction.graph.tensors[self.weight][0].numel()
        bias = self.call.get("bias")
        self.bias = str(bias.target) if _own(bias, space.graph) else None
        self.full_graph = _ending(space.graph, [node])
        self.small_graph = _ending(extraction.graph, [self.small["input"], self.small.node])

    def halves(self, tensors: Mapping[str, Tensor], batches: Sequence[Batch]) -> tuple[Moments, Moments]:
        """Moments over all positions of the result, of every other sample each."""
        result: list[Moments] = []
        channel, seen = self.columns.channel(self.call), 0
        with torch.no_grad():
            for args, kwargs, _ in batches:
                (full,) = self.full_graph.run(*args, **kwargs)
                x, found = self.small_graph.run(*args, tensors=tensors, **kwargs)
                full = sliced(full, self.keep)
                lacks, whole = (
                    t.movedim(channel, -1).reshape(len(x), -1, t.shape[channel]) for t in (full - found, full)
                )
                step = max(CHUNK // (lacks.shape[1] * self.width), 1)
                for start in range(0, len(x), step):
                    for k in (0, 1):
                        at = slice(start + (k + start + seen) % 2, min(start + step, len(x)), 2)
                        columns = self.columns.of(self.small, x[at])
                        part = columns, lacks[at].flatten(0, 1), whole[at].flatten(0, 1)
                        if len(result) < 2:
                            result.append(Moments.zeros(part[0], part[1]))
                        result[k].add(*(t.double() for t in part))
                seen += len(x)
        if not all(bool(half.xx.isfinite().all() and half.ex.isfinite().all()) for half in result):
            raise UsageError(
                "its inputs are NaN or infinite",
                place=f"reform: {self.weight}",
                remedy="look for NaN in the calibration data; nothing was changed",
            )
        return result[0], result[1]

    def corrected(self, tensors: Mapping[str, Tensor], change: Tensor, shift: Tensor) -> dict[str, Tensor]:
        """The new weight, and the new bias where the call has one of its own."""
        weight = tensors[self.weight].detach()
        result = {self.weight: (weight.double() + change.reshape(weight.shape)).to(weight.dtype)}
        if self.bias is not None:
            bias = tensors[self.bias].detach()
            result[self.bias] = (bias.double() + shift).to(bias.dtype)
        return result


def _own(tensor: Any, graph: Graph) -> bool:
    """Whether this argument of a call is a parameter that nothing else reads."""
    if not isinstance(tensor, fx.Node) or tensor.op != "get_attr" or len(tensor.users) > 1:
        return False
    name = str(tensor.target)
    return isinstance(graph.tensors[name], nn.Parameter) and name not in graph.aliases.values()


@dataclass
class Moments:
    """Sums over ``count`` positions, in fp64: of columns x, of what the result lacks e, of the full result y."""

    xx: Tensor
    ex: Tensor
    x: Tensor
    e: Tensor
    ee: Tensor
    y: Tensor
    yy: Tensor
    count: int = 0

    @staticmethod
    def zeros(columns: Tensor, lacks: Tensor) -> Moments:
        m, n = lacks.shape[1], columns.shape[1]
        zero = functools.partial(torch.zeros, dtype=torch.float64, device=columns.device)
        return Moments(zero(n, n), zero(m, n), zero(n), zero(m), zero(()), zero(m), zero(()))

    def add(self, x: Tensor, e: Tensor, y: Tensor) -> None:
        self.xx += x.T @ x
        self.ex += e.T @ x
        self.x += x.sum(0)
        self.e += e.sum(0)
        self.ee += e.square().sum()
        self.y += y.sum(0)
        self.yy += y.square().sum()
        self.count += len(x)

    def __add__(self, other: Moments) -> Moments:
        total: dict[str, Any] = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Moments(**total)

    def fitted(self, ridge: float, biased: bool) -> tuple[Tensor, Tensor]:
        """What to add to the weight (one row for each channel) and to the bias.

        With a bias the fit is to deviations from the means, and the bias takes over the mean of what is lacking.
        """
        n = max(self.count, 1)
        x, e = (self.x / n, self.e / n) if biased else (torch.zeros_like(self.x), torch.zeros_like(self.e))
        change = torch.zeros_like(self.ex)
        if math.isfinite(ridge):
            xx = self.xx / n - torch.outer(x, x)
            rounding = 1e-12 * self.xx.diagonal().mean() / n  # of the difference, where inputs hardly vary
            xx.diagonal().add_((ridge * xx.diagonal().mean() + rounding).clamp_min(1e-30))
            change = torch.cholesky_solve((self.ex / n - torch.outer(e, x)).T, torch.linalg.cholesky(xx)).T
        return change, e - change @ x

    def lacking(self, change: Tensor, shift: Tensor) -> Tensor:
        """Sum of squares of e - change x - shift."""
        quadratic = self.ee - 2 * (change * self.ex).sum() + ((change @ self.xx) * change).sum()
        return quadratic - 2 * shift @ (self.e - change @ self.x) + self.count * shift.square().sum()


def solve(a: Moments, b: Moments, biased: bool, ridges: Sequence[float] = RIDGES) -> tuple[Tensor, Tensor, Fit]:
    """The changes of weight and bias, with the ridge that does best on one half when fitted on the other."""
    tried = [float(b.lacking(*a.fitted(r, biased)) + a.lacking(*b.fitted(r, biased))) for r in ridges]
    best = min(range(len(ridges)), key=tried.__getitem__)
    both = a + b
    spread = float((both.yy - both.y.square().sum() / max(both.count, 1)).clamp_min(1e-30))
    return *both.fitted(ridges[best], biased), Fit(
        float(both.ee) / spread, max(tried[best], 0.0) / spread, ridges[best]
    )


def _ending(graph: Graph, nodes: Sequence[fx.Node]) -> Graph:
    """The part of ``graph`` that computes ``nodes``, and returns them as a list."""
    needed, stack = set(), list(nodes)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
    body = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.fx.nodes:
        if node.op == "placeholder" or node in needed:
            env[node] = body.node_copy(node, lambda n: env[n])
    body.output(tuple(env[node] for node in nodes))
    return replace(graph, fx=body, out_spec=pytree.tree_structure([0] * len(nodes)))
