"""Run any module in fp64, casts inside its code included."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from model_coverage.entry import Args

NARROW = (torch.float32, torch.float16, torch.bfloat16)
FLOOR = 1e-3
"""Outputs smaller than this are compared as if they were this large."""


def _widen(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


class WideOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every dtype that an operator is given becomes fp64 where it is a narrower one: ``x.float()`` stays wide."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*pytree.tree_map(_widen, args), **pytree.tree_map(_widen, kwargs or {}))


class WideCalls(TorchFunctionMode):
    """The same for calls that are no operators, as ``torch.tensor(0.5, dtype=torch.float)``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{name: _widen(value) for name, value in (kwargs or {}).items()})


def wide_copy(model: nn.Module) -> nn.Module:
    """A copy in fp64; experts in transformers run as plain products, since grouped ones do not take fp64."""
    result = copy.deepcopy(model).double().eval()
    choose = getattr(result, "set_experts_implementation", None)
    if callable(choose):
        choose("batched_mm")
    return result


def run(model: nn.Module, inputs: Args) -> list[Tensor]:
    """The tensors that ``model``, already in fp64, returns on ``inputs``."""
    given = pytree.tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), WideCalls(), WideOps():  # type: ignore[no-untyped-call]
            result = model(**given) if isinstance(given, dict) else model(*given)
    finally:
        torch.set_default_dtype(before)
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def gap(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference relative to the largest value of each tensor; infinite where shapes differ."""
    if [x.shape for x in expected] != [y.shape for y in found]:
        return float("inf")
    worst = 0.0
    for x, y in zip(expected, found, strict=True):
        if not x.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(x, y) else float("inf"))
        elif x.numel():
            difference = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x.double() - y.double()).abs())
            scale = max(FLOOR, float(x[x.isfinite()].abs().max()) if bool(x.isfinite().any()) else FLOOR)
            worst = max(worst, float(difference.max()) / scale)
            worst = worst if worst == worst else float("inf")
    return worst


def worst_gap(reference: nn.Module, module: nn.Module, inputs: Callable[[int], Args], batches: list[int]) -> float:
    """Both modules, in fp64 copies of their own, on example inputs of several batch sizes."""
    left, right = wide_copy(reference), wide_copy(module)
    return max(gap(run(left, inputs(n)), run(right, inputs(n))) for n in batches)
