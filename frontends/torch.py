"""From ``nn.Module`` to graph: ``torch.export`` (non-strict), of ``torch.fx.symbolic_trace`` where that fails."""

from __future__ import annotations

import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from coppice.core.errors import TraceError, UsageError
from coppice.core.graph import Graph
from coppice.frontends.admit import admit, unwrap
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
    model, wrapped = unwrap(model)
    args, kwargs = admit(model, *_as_call(example_inputs))
    exported, notes = _export(model, args, kwargs, dynamic)
    graph = lift(model, exported, name or type(model).__name__)
    graph.inputs, graph.model = (args, kwargs), model
    graph.notes += [*wrapped, *notes]
    if dynamic is True and not notes and not graph.batch_dynamic and _batch(model, args, kwargs)[1] is not None:
        graph.notes.append("the batch size is fixed to that of the example: forward uses it as a plain number")
    graph.erase_dead()
    graph.verify()
    return graph


# ---- inputs --------------------------------------------------------------------------------------------------------


def _as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


# ---- export --------------------------------------------------------------------------------------------------------


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic
) -> tuple[torch.export.ExportedProgram, list[str]]:
    notes = ["config.use_cache was off while tracing: the graph returns no cache"] if _caches(model) else []
    attempts: list[tuple[Any, Any, Any]] = []
    if dynamic is True:
        batched, shapes = _batch(model, args, kwargs)
        if shapes is not None:
            attempts.append((*batched, shapes))
        attempts.append((args, kwargs, None))
    else:
        attempts.append((args, kwargs, None if dynamic is False else dynamic))
    failures: list[Exception] = []
    with tracing_mode(model), _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        makers: tuple[Callable[[], nn.Module], ...] = (lambda: model, lambda: _symbolic(model))
        for make in makers:
            for call_args, call_kwargs, shapes in attempts:
                try:
                    program = _program(make(), call_args, call_kwargs, shapes)
                except Exception as error:  # noqa: BLE001 (export raises whatever the user's forward raises)
                    failures.append(error)
                    continue
                if dynamic is True and shapes is not None and not _varies(program):
                    failures.append(ValueError("forward works at one batch size only"))
                    continue
                if dynamic is True and shapes is None and len(attempts) > 1:
                    notes.append(f"the batch size is fixed to that of the example: {_first_line(failures[0])}")
                return program, notes
        failure = failures[len(attempts) - 1]  # of the model itself, with fixed sizes where those were tried
        if not isinstance(dynamic, bool) and _traces(model, args, kwargs):
            raise UsageError(
                f"the model cannot be traced with these dynamic shapes: {_first_line(failure)}",
                place="dynamic",
                remedy="leave `dynamic` out (the batch size varies where the model allows it), or give a structure as "
                "in torch.export, with sizes that forward never takes for fixed",
            ) from failure
    raise _trace_error(model, failure, args, kwargs) from failure


def _varies(program: torch.export.ExportedProgram) -> bool:
    """Whether some size of some input may change."""
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    sizes = [size for value in values if isinstance(value, torch.Tensor) for size in value.shape]
    return any(isinstance(size, torch.SymInt) and size.node.expr.free_symbols for size in sizes)


def _program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any = None
) -> torch.export.ExportedProgram:
    """Export on copies: torch leaves marks on the inputs, and takes a tensor that is given twice for one input."""
    args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, (args, kwargs))
    return torch.export.export(model, args, kwargs or None, dynamic_shapes=shapes, strict=False)


def _traces(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the model can be exported with fixed sizes."""
    try:
        _program(model, args, kwargs)
    except Exception:  # noqa: BLE001
        return False
    return True


def _symbolic(model: nn.Module) -> nn.Module:
    traced: nn.Module = fx.symbolic_trace(model)
    return traced


def _batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, Any], Any]:
    """Example inputs of at least two samples, and the dynamic shapes (by argument of forward) that let axis 0 vary."""
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

    wide = pytree.tree_map(widen, args), pytree.tree_map(widen, kwargs)
    try:
        named = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except TypeError:  # inputs that forward does not take: the export says so
        return wide, None
    return wide, pytree.tree_map(shape, dict(named))


def _caches(model: nn.Module) -> bool:
    """Whether ``model`` returns a cache unless told not to, as transformers' decoders do."""
    return getattr(getattr(model, "config", None), "use_cache", None) is True


@contextmanager
def tracing_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, without the key-value cache that a graph cannot return; undone, as are buffers."""
    training = [(module, module.training) for module in model.modules()]
    cached = _caches(model)
    model.eval()
    try:
        if cached:
            model.config.use_cache = False  # type: ignore[union-attr]
        with torch.no_grad(), _restored(model):
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
    detail = next((line.strip() for line in text[1:] if line.startswith("  - ")), "")  # of violated constraints
    return (detail or text[0])[:200] if text else type(error).__name__


def _trace_error(model: nn.Module, error: Exception, args: Any, kwargs: Any) -> Exception:
    """Say where in the user's code tracing stopped; inputs that do not even run eagerly are a `UsageError`."""
    try:
        with tracing_mode(model):
            result = model(*args, **kwargs)
    except Exception as eager:  # noqa: BLE001
        shapes = [tuple(x.shape) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        return UsageError(
            f"the model does not run on the example inputs of shapes {shapes}: {_first_line(eager)}",
            place=_user_line(eager),
            remedy="pass inputs of the shape and dtype that the model's forward expects",
        )
    odd = [x for x in pytree.tree_leaves(result) if not isinstance(x, (torch.Tensor, *PLAIN))]
    if odd:
        name = type(odd[0]).__name__
        return TraceError(
            f"forward returns a {name}, which torch.export cannot take apart",
            place=type(model).__name__,
            remedy="return tensors in tuples, lists or dicts, or register the type first: "
            f"torch.export.register_dataclass({name})",
        )
    return TraceError(
        f"torch.export cannot follow the model: {_first_line(error)}",
        place=_user_line(error),
        remedy="replace control flow that depends on tensor values (if x.sum() > 0) by torch.where or torch.cond, "
        "and Python state or .item() calls in forward by tensor operations",
    )


PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
"""What forward may return beside tensors."""


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Undo what forward writes to buffers, in place or by assignment."""
    saved = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in saved:
                module._buffers[name] = buffer
                if not buffer.is_meta and not torch.equal(buffer, before):
                    buffer.copy_(before)


def _user_line(error: BaseException) -> str:
    """``file:line (code)`` of the deepest frame outside torch."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not is_library(f.filename)]
    if not outside:
        return ""
    last = outside[-1]
    return f"{last.filename}:{last.lineno} ({(last.line or '').strip()})"
