"""ONNX out: torch's exporter on the graph, checked by the ONNX checker and, where installed, by ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.utils._pytree as pytree
from torch import nn

from coppice.backends.module.graph_model import graph_model
from coppice.core.errors import EquivalenceError, UnsupportedError, first_line
from coppice.core.files import write_atomic
from coppice.core.graph import Graph, Value

OPSET = 20
TOLERANCE = 1e-3
"""Largest allowed difference to ONNX Runtime, relative to the largest output (fp32 kernels sum in other orders)."""
LARGE = 1 << 30


def export(graph: Graph, tensors: dict[str, torch.Tensor], path: Path, receipt: dict[str, Any], *, check: bool) -> Path:
    """Write ``graph`` with ``tensors`` to ``path`` (standard opset, dynamic batch where the graph's is), atomically.

    With ``check`` the file is compared with the graph in ONNX Runtime; ``receipt["onnx"]`` records the outcome.
    Raises `UnsupportedError` where torch's exporter or the checker refuses, `EquivalenceError` on a difference.
    """
    if graph.inputs is None:
        raise UnsupportedError(
            "exporting needs example inputs, which a loaded subnet does not carry",
            place=str(path),
            remedy="export before saving, or set subnet.graph.inputs = (args, kwargs)",
        )
    module = graph_model(graph, tensors)
    args, kwargs = _wide(graph)
    try:
        with _quiet():
            program = torch.onnx.export(
                module, args, kwargs=kwargs or None, dynamo=True, opset_version=OPSET,
                dynamic_shapes=_dynamic(graph), input_names=[n.name for n in graph.placeholders()],
            )  # fmt: skip
    except Exception as error:
        raise UnsupportedError(
            f"torch's ONNX exporter refuses the model: {first_line(error)[:300]}",
            place=str(path),
            remedy="replace the op it names by one with an ONNX form",
        ) from error
    assert program is not None
    large = sum(t.numel() * t.element_size() for t in tensors.values()) > LARGE

    def write(temporary: Path) -> None:
        with _quiet():
            program.save(str(temporary), external_data=False)
        try:
            onnx.checker.check_model(str(temporary))
        except onnx.checker.ValidationError as error:
            raise UnsupportedError(
                f"the ONNX checker refuses the exported model: {first_line(error)[:300]}",
                place=str(path),
                remedy="this is a fault of the exporter: please report the model; Subnet.save works without ONNX",
            ) from error

    if large:
        raise UnsupportedError(
            "the model is larger than 1 GiB, more than one ONNX file may hold",
            place=str(path),
            remedy="save it with Subnet.save instead",
        )
    write_atomic(path, write)
    receipt["onnx"] = {"opset": OPSET, "checked": None}
    if check and importlib.util.find_spec("onnxruntime") is not None:
        receipt["onnx"]["checked"] = _compare(graph, module, path)
    return path


def _wide(graph: Graph) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs with at least two samples, so that the exporter does not take the batch for a constant."""
    assert graph.inputs is not None
    flat = graph.flatten_inputs(*graph.inputs)
    wide = [
        x.repeat(2, *[1] * (x.ndim - 1)) if _batched(node.meta["value"]) and x.shape[0] == 1 else x
        for x, node in zip(flat, graph.placeholders(), strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(wide, graph.in_spec)
    return tuple(args), dict(kwargs)


def _batched(value: Any) -> bool:
    return isinstance(value, Value) and bool(value.shape) and value.symbols[0] is not None


def _dynamic(graph: Graph) -> Any:
    if not graph.batch_dynamic:
        return None
    shapes = [{0: "batch"} if _batched(node.meta["value"]) else None for node in graph.placeholders()]
    args, kwargs = pytree.tree_unflatten(shapes, graph.in_spec)
    return kwargs if kwargs and not args else tuple(args)


def _compare(graph: Graph, module: nn.Module, path: Path) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    args, kwargs = _wide(graph)
    with torch.no_grad():
        expected = [x for x in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(x, torch.Tensor)]
    flat = graph.flatten_inputs(args, kwargs)
    names = {i.name for i in session.get_inputs()}
    feed = {n.name: x.detach().numpy() for n, x in zip(graph.placeholders(), flat, strict=True) if n.name in names}
    worst = 0.0
    for found, wanted in zip(session.run(None, feed), expected, strict=True):
        target = wanted.detach().numpy().astype(np.float64)
        gap = float(np.abs(np.asarray(found, np.float64) - target).max(initial=0.0))
        worst = max(worst, gap / max(1.0, float(np.abs(target).max(initial=0.0))))
    if not worst <= TOLERANCE:
        raise EquivalenceError(
            f"ONNX Runtime {onnxruntime.__version__} differs from torch by {worst:.3g} (allowed: {TOLERANCE})",
            error=worst,
            place=str(path),
            remedy="the file is left for inspection; please report the model",
        )
    return {"runtime": f"onnxruntime {onnxruntime.__version__}", "error": worst}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress; ours is enough."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
