"""Prove a subnet: its graph against the full graph with masked tensors, in fp64, on examples and random inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from coppice.core.errors import CoppiceError, EquivalenceError, UnsupportedError, first_line
from coppice.core.graph import FLOATING, Graph, Value
from coppice.core.higher import HigherOrder, map_literals

TOLERANCE = 1e-9
"""Largest allowed relative difference in fp64."""
FLOOR = 1e-3
"""Outputs smaller than this are compared as if they were this large: their digits are noise of larger sums."""

REPORT = (
    "this is a bug in coppice: please report the model and receipt; until then, name the layers involved in "
    "build_space(ignore=...)"
)


@dataclass(frozen=True)
class Agreement:
    """``error`` is the largest difference found, relative to the reference's magnitude, over ``trials`` inputs."""

    error: float
    trials: int
    dtype: str
    batches: tuple[int, ...]


def compare(
    reference: Graph,
    masked: Mapping[str, torch.Tensor],
    subnet: Graph,
    *,
    trials: int = 2,
    seed: int = 0,
) -> Agreement:
    """Run both graphs in fp64 on the example inputs, on ``trials`` random ones, and at another batch size.

    Raises `EquivalenceError` where the subnet does not even run, `UnsupportedError` where the reference does not in
    fp64.
    """
    full, small = _double(reference, masked), _double(subnet, subnet.tensors)
    worst, batches = 0.0, []
    with torch.no_grad(), _default_double():
        for args, kwargs in inputs_like(reference, trials, seed):
            args, kwargs = pytree.tree_map(_as_double, (args, kwargs))
            expected = _expected(full, seed, args, kwargs)
            try:
                with seeded(seed):
                    found = small.run(*args, **kwargs)
            except CoppiceError:
                raise
            except Exception as error:
                raise _does_not_run(subnet, error) from error
            worst = max(worst, difference(expected, found, FLOOR))
            batches += [
                x.shape[0] for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim
            ][:1]
    return Agreement(worst, len(batches), "float64", tuple(sorted(set(batches))))


def _expected(full: Graph, seed: int, args: Any, kwargs: Any) -> Any:
    try:
        with seeded(seed):
            return full.run(*args, **kwargs)
    except Exception as error:
        raise UnsupportedError(
            f"the full model does not run in fp64, where subnets are checked: {first_line(error)[:300]}",
            place=full.name,
            remedy="let custom ops take float64 and return the dtype they are given, or extract with validate=False",
        ) from error


def check_trace(graph: Graph, model: nn.Module, seed: int = 0) -> None:
    """Raise `EquivalenceError` where ``graph`` does not compute what ``model`` does on the example inputs.

    In the model's own precision, and only where the model repeats itself: one that draws random numbers or keeps state
    has no one result to compare with.
    """
    assert graph.inputs is not None
    args, kwargs = graph.inputs
    with torch.no_grad():
        results = []
        for run in (model, model, graph.run):
            with seeded(seed):
                results.append(run(*args, **kwargs))
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in graph.tensors.values())
    gap = difference(results[0], results[2])
    if gap > (5e-2 if half else 1e-3) and difference(results[0], results[1]) <= gap / 10:
        raise EquivalenceError(
            f"the traced graph differs from {type(model).__name__} by {gap:.3g} on the example inputs",
            error=gap,
            place=graph.name,
            remedy="this is a bug in coppice or torch.export: please report the model; trace it with dynamic=False, or "
            "with inputs that are different tensors",
        )


def _does_not_run(subnet: Graph, error: Exception) -> EquivalenceError:
    return EquivalenceError(
        f"the subnet does not run: {first_line(error)[:300]}",
        error=float("inf"),
        place=subnet.name,
        remedy=REPORT,
    )


def module_gap(graph: Graph, tensors: dict[str, torch.Tensor], module: nn.Module) -> float:
    """How far ``module``, already in fp64, is from ``graph`` with ``tensors`` in fp64 on inputs like its own.

    Zero up to rounding for a module that computes in its parameters' precision; about 1e-7 for one that casts to fp32.
    """
    wide, worst = _double(graph, tensors), 0.0
    with torch.no_grad(), _default_double():
        for args, kwargs in inputs_like(graph, 1, 1):
            args, kwargs = pytree.tree_map(_as_double, (args, kwargs))
            with seeded(1):
                expected = wide.run(*args, **kwargs)
            with seeded(1):
                worst = max(worst, difference(expected, module(*args, **kwargs), FLOOR))
    return worst


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The same random numbers each time, for models that draw some in eval mode; the generators are put back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def inputs_like(graph: Graph, trials: int, seed: int) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The example inputs, ``trials`` random inputs of the same shape, and one of a larger batch where that may vary."""
    if graph.inputs is None:
        return
    generator = torch.Generator().manual_seed(seed)
    yield graph.inputs
    for _ in range(trials):
        yield pytree.tree_map(lambda x: _random_like(x, generator), graph.inputs)
    if graph.batch_dynamic:
        flat = graph.flatten_inputs(*graph.inputs)
        wide = [_one_more(x, node.meta["value"], generator) for x, node in zip(flat, graph.placeholders(), strict=True)]
        yield pytree.tree_unflatten(wide, graph.in_spec)


def _random_like(x: Any, generator: torch.Generator) -> Any:
    if not isinstance(x, torch.Tensor) or not x.numel() or x.dtype is torch.bool:
        return x
    if x.is_floating_point():
        spread = x.float().std() if x.numel() > 1 else torch.ones(())
        noise = torch.randn(x.shape, generator=generator) * (spread if spread > 0 else 1.0) + x.float().mean().cpu()
        return noise.to(x.device, x.dtype)
    low, high = int(x.min()), int(x.max())
    return torch.randint(low, high + 1, x.shape, generator=generator).to(x.device, x.dtype)


def _one_more(x: Any, value: Value, generator: torch.Generator) -> Any:
    """One sample more (at least 3) along every axis whose size is the batch symbol itself."""
    if not isinstance(x, torch.Tensor) or not x.ndim or value.symbols[0] is None:
        return x
    extra = torch.cat([x, x[:1], x[:1]]) if x.shape[0] == 1 else torch.cat([x, x[:1]])
    return _random_like(extra, generator)


def difference(a: Any, b: Any, floor: float = 1.0) -> float:
    """The largest |a - b| / max(floor, max |a|) over all tensors of two results; inf where their structures differ."""
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    if len(left) != len(right):
        return float("inf")
    worst = 0.0
    for x, y in zip(left, right, strict=True):
        if not isinstance(x, torch.Tensor):
            worst = max(worst, 0.0 if x == y else float("inf"))
            continue
        if x.shape != y.shape:
            return float("inf")
        if not x.numel():
            continue
        if not x.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(x, y) else float("inf"))
            continue
        x, y = x.double(), y.double()
        same = (x == y) | (x.isnan() & y.isnan())
        gap = torch.where(same, torch.zeros_like(x), (x - y).abs())
        scale = max(floor, float(x[x.isfinite()].abs().max()) if x.isfinite().any() else floor)
        found = float(gap.max()) / scale
        worst = max(worst, found if found == found else float("inf"))
    return worst


def _as_double(x: Any) -> Any:
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _double(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> Graph:
    """The same graph computing in fp64: tensors and dtype arguments widened."""
    body = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}

    def wide(value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value in FLOATING else value

    for node in graph.fx.nodes:
        new = body.node_copy(node, lambda n: env[n])
        new.args, new.kwargs = map_literals((tuple(new.args), dict(new.kwargs)), wide)
        if isinstance(new.target, HigherOrder):
            new.target = new.target.mapped(wide)
        new.meta = dict(node.meta)
        env[node] = new
    return replace(graph, fx=body, tensors={n: _as_double(t.detach()) for n, t in tensors.items()})


@contextmanager
def _default_double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
