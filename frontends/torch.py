"""From ``nn.Module`` to graph: ``torch.export`` (non-strict), of ``torch.fx.symbolic_trace`` where that fails."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from coppice.core.errors import TraceError, UsageError
from coppice.core.graph import Graph
from coppice.core.tensors import check_finite
from coppice.frontends.lift import is_library, lift

Dynamic = bool | Mapping[str, Any] | tuple[Any, ...]


def trace(model: nn.Module, example_inputs: Any, *, dynamic: Dynamic = True, name: str = "") -> Graph:
    """Trace ``model`` in eval mode into a `Graph`. The model is left as it was; its weights are shared, not copied.

    ``example_inputs`` is one tensor, a tuple of positional inputs, or a dict of keyword inputs (nested containers are
    fine). The batch size (axis 0 of the inputs that share it) becomes dynamic where the model allows it;
    ``dynamic=False`` fixes all sizes, and a ``dynamic_shapes`` structure of ``torch.export`` is taken as it is.
    Meta tensors work: nothing is computed.

    Raises `UsageError` for inputs that do not fit the model, `TraceError` where the model cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"expected a torch.nn.Module, got {type(model).__name__}",
            place="trace",
            remedy="pass an instance of the model, not its class or a file",
        )
    args, kwargs = _as_call(example_inputs)
    args, kwargs = _check(model, args, kwargs)
    exported, notes = _export(model, args, kwargs, dynamic)
    graph = lift(model, exported, name or type(model).__name__)
    graph.inputs, graph.model = (args, kwargs), model
    graph.notes += notes
    if dynamic is True and not notes and not graph.batch_dynamic and _batch(args, kwargs)[1] is not None:
        graph.notes.append("the batch size is fixed to that of the example: forward uses it as a plain number")
    graph.erase_dead()
    graph.verify()
    return graph


# ---- inputs --------------------------------------------------------------------------------------------------------


def _as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def _check(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if not leaves:
        raise UsageError("no tensor among the example inputs", place="trace", remedy="pass at least one example tensor")
    empty = next((tuple(leaf.shape) for leaf in leaves if not leaf.numel()), None)
    if empty is not None:
        raise UsageError(
            f"an example input of shape {empty} is empty",
            place="trace",
            remedy="give every axis at least one position: the checks run the model on these inputs",
        )
    devices = {str(p.device) for p in (*model.parameters(), *model.buffers())}
    if devices == {"meta"}:
        meta = pytree.tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, (args, kwargs))
        return cast("tuple[tuple[Any, ...], dict[str, Any]]", meta)
    given = {str(leaf.device) for leaf in leaves}
    if len(devices) > 1 or (devices and given != devices):
        raise UsageError(
            f"the model is on {_listed(devices)} and the example inputs on {_listed(given)}",
            place="trace",
            remedy=f"move both to one device, for example model.to({min(given)!r})",
        )
    check_finite((*model.named_parameters(), *model.named_buffers()))
    return args, kwargs


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names))


# ---- export --------------------------------------------------------------------------------------------------------


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic
) -> tuple[torch.export.ExportedProgram, list[str]]:
    notes = ["config.use_cache was off while tracing: the graph returns no cache"] if _caches(model) else []
    attempts: list[tuple[Any, Any, Any]] = []
    if dynamic is True:
        batched, shapes = _batch(args, kwargs)
        if shapes is not None:
            attempts.append((*batched, shapes))
        attempts.append((args, kwargs, None))
    else:
        attempts.append((args, kwargs, None if dynamic is False else dynamic))
    failure: Exception | None = None
    with tracing_mode(model), _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        makers: tuple[Callable[[], nn.Module], ...] = (lambda: model, lambda: _symbolic(model))
        for make in makers:
            for call_args, call_kwargs, shapes in attempts:
                try:
                    program = torch.export.export(
                        make(), call_args, call_kwargs or None, dynamic_shapes=shapes, strict=False
                    )
                except Exception as error:  # noqa: BLE001 (export raises whatever the user's forward raises)
                    failure = failure or error
                    continue
                if dynamic is True and shapes is None and len(attempts) > 1:
                    notes.append(f"the batch size is fixed to that of the example: {_first_line(failure)}")
                return program, notes
    assert failure is not None
    raise _trace_error(model, failure, args, kwargs) from failure


def _symbolic(model: nn.Module) -> nn.Module:
    traced: nn.Module = fx.symbolic_trace(model)
    return traced


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, Any], Any]:
    """Example inputs of at least two samples, and the dynamic shapes that let axis 0 vary."""
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim]
    if not leaves or leaves[0].shape[0] == 0:
        return (args, kwargs), None
    size = leaves[0].shape[0]

    def widen(x: Any) -> Any:  # a batch of one would be taken for a constant
        if isinstance(x, torch.Tensor) and x.ndim and x.shape[0] == 1 == size:
            return x.repeat(2, *[1] * (x.ndim - 1))
        return x

    def shape(x: Any) -> Any:
        batched = isinstance(x, torch.Tensor) and x.ndim and x.shape[0] == size
        return {0: torch.export.Dim.AUTO} if batched else None

    shapes = (pytree.tree_map(shape, args), pytree.tree_map(shape, kwargs))
    wide = pytree.tree_map(widen, args), pytree.tree_map(widen, kwargs)
    return wide, shapes[1] if kwargs else shapes[0]


def _caches(model: nn.Module) -> bool:
    """Whether ``model`` returns a cache unless told not to, as transformers' decoders do."""
    return getattr(getattr(model, "config", None), "use_cache", None) is True


@contextmanager
def tracing_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, and without the key-value cache that a graph cannot return; undone on leaving."""
    training = [(module, module.training) for module in model.modules()]
    cached = _caches(model)
    model.eval()
    try:
        if cached:
            model.config.use_cache = False  # type: ignore[union-attr]
        with torch.no_grad():
            yield
    finally:
        if cached:
            model.config.use_cache = True  # type: ignore[union-attr]
        for module, flag in training:
            module.training = flag


@contextmanager
def _quiet() -> Iterator[None]:
    """torch prints and logs pages about an export that fails; what counts of them is in the exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception | None) -> str:
    text = str(error).strip().splitlines() if error else []
    return text[0][:200] if text else type(error).__name__


def _trace_error(model: nn.Module, error: Exception, args: Any, kwargs: Any) -> Exception:
    """Say where in the user's code tracing stopped; inputs that do not even run eagerly are a `UsageError`."""
    try:
        with tracing_mode(model):
            model(*args, **kwargs)
    except Exception as eager:  # noqa: BLE001
        shapes = [tuple(x.shape) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        return UsageError(
            f"the model does not run on the example inputs of shapes {shapes}: {_first_line(eager)}",
            place=_user_line(eager),
            remedy="pass inputs of the shape and dtype that the model's forward expects",
        )
    return TraceError(
        f"torch.export cannot follow the model: {_first_line(error)}",
        place=_user_line(error),
        remedy="replace control flow that depends on tensor values (if x.sum() > 0) by torch.where or torch.cond, "
        "and Python state or .item() calls in forward by tensor operations",
    )


def _user_line(error: BaseException) -> str:
    """``file:line (code)`` of the deepest frame outside torch."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not is_library(f.filename)]
    if not outside:
        return ""
    last = outside[-1]
    return f"{last.filename}:{last.lineno} ({(last.line or '').strip()})"
