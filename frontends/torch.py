"""From ``nn.Module`` to graph: ``torch.export`` (non-strict), of ``torch.fx.symbolic_trace`` where that fails."""

from __future__ import annotations

import io
import linecache
import logging
import operator
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from coppice.core.errors import TraceError, UsageError
from coppice.core.graph import Graph, Value

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
    graph = _lift(model, exported, name or type(model).__name__)
    graph.inputs, graph.model = (args, kwargs), model
    graph.notes += notes
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
    for name, parameter in model.named_parameters():
        bad = 0 if parameter.is_meta else int((~torch.isfinite(parameter.detach())).sum())
        if bad:
            raise UsageError(
                f"{bad} of {parameter.numel()} values are NaN or infinite",
                place=f"parameter {name}",
                remedy="load a checkpoint that trained without diverging; scores and checks would be meaningless here",
            )
    for name, buffer in model.named_buffers():  # infinity is left alone: attention masks hold it
        if not buffer.is_meta and bool(buffer.detach().isnan().any()):
            raise UsageError(
                "it holds NaN", place=f"buffer {name}", remedy="load a checkpoint that trained without diverging"
            )
    return args, kwargs


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names))


# ---- export --------------------------------------------------------------------------------------------------------


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic
) -> tuple[torch.export.ExportedProgram, list[str]]:
    notes: list[str] = []
    attempts: list[tuple[Any, Any, Any]] = []
    if dynamic is True:
        batched, shapes = _batch(args, kwargs)
        if shapes is not None:
            attempts.append((*batched, shapes))
        attempts.append((args, kwargs, None))
    else:
        attempts.append((args, kwargs, None if dynamic is False else dynamic))
    failure: Exception | None = None
    with _eval_mode(model), _quiet(), warnings.catch_warnings():
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


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
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
        with _eval_mode(model):
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
    outside = [f for f in frames if not _is_library(f.filename)]
    if not outside:
        return ""
    last = outside[-1]
    return f"{last.filename}:{last.lineno} ({(last.line or '').strip()})"


def _is_library(path: str) -> bool:
    return bool(re.search(r"[/\\](torch|coppice|networkx)[/\\]", path)) or path.startswith("<") or path == __file__


# ---- from the exported program to a graph --------------------------------------------------------------------------


def _lift(model: nn.Module, program: torch.export.ExportedProgram, name: str) -> Graph:
    """Rebuild the program as our language: tensors by canonical name, no in-place calls, no assertions."""
    live = _live_tensors(model, program)
    canonical: dict[int, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    signature = program.graph_signature
    lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = {**signature.inputs_to_lifted_tensor_constants, **signature.inputs_to_lifted_custom_objs}
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    attrs: dict[str, fx.Node] = {}
    hints: dict[str, int] = {}
    for key, tensor in live.items():
        first = canonical.setdefault(id(tensor), key)
        if first != key:
            aliases[key] = first
    source = _Functional(program)
    for node in source.graph.nodes:
        if node.op == "placeholder" and (node.name in lifted or node.name in constants):
            key = str(lifted.get(node.name) or constants[node.name])
            key = aliases.get(key, key)
            if key not in attrs:
                tensors[key] = live.get(key, program.constants.get(key))
                attrs[key] = graph.create_node("get_attr", key, name=_identifier(key))
                attrs[key].meta.update(
                    value=Value(tuple(tensors[key].shape), tensors[key].dtype), source="", modules=()
                )
            env[node] = attrs[key]
        elif node.op == "placeholder":
            new = graph.create_node("placeholder", node.name, name=node.name)
            new.meta.update(value=_value(node.meta.get("val"), hints), source="", modules=())
            env[node] = new
        elif node.op == "output":
            wanted = [
                s.arg.name for s in signature.output_specs if s.kind.name == "USER_OUTPUT" and hasattr(s.arg, "name")
            ]
            results = [a for a in node.args[0] if not isinstance(a, fx.Node) or source.original(a) in wanted]
            new = graph.output(tuple(fx.map_arg(results, lambda n: env[n])))
            new.meta.update(value=None, source="", modules=())
        elif node.op == "call_function":
            env[node] = _copy_call(graph, node, env, hints)
        else:
            raise TraceError(f"a node of kind {node.op} is left after export", place=str(node))
    return Graph(
        name=name,
        fx=graph,
        tensors=tensors,
        aliases={a: c for a, c in aliases.items() if c in tensors},
        in_spec=program.call_spec.in_spec,
        out_spec=program.call_spec.out_spec,
        symbol_hints=hints,
        notes=source.notes,
    )


def _copy_call(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, Any], hints: dict[str, int]) -> Any:
    if _is_check(node.target):
        return None
    if _is_plain_copy(node.target):
        return env[node.all_input_nodes[0]]
    args: Any = fx.map_arg(node.args, lambda n: env[n])
    kwargs: Any = fx.map_arg(node.kwargs, lambda n: env[n])
    new = graph.create_node("call_function", node.target, args, kwargs, name=node.name)
    new.meta.update(value=_value(node.meta.get("val"), hints), source=_source(node), modules=_modules(node))
    return new


def _live_tensors(model: nn.Module, program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    live: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    live.update(model.named_buffers(remove_duplicate=False))
    for key, tensor in (*program.state_dict.items(), *program.constants.items()):
        if isinstance(tensor, torch.Tensor):
            live.setdefault(key, tensor)
    return live


class _Functional:
    """The program's graph without in-place calls: each becomes its functional twin, and later reads see the result."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.graph = program.graph
        self.notes: list[str] = []
        self._names: dict[fx.Node, str] = {}
        if any(_mutates(node) for node in program.graph.nodes) and not self._rename_in_place():
            self.graph = program.run_decompositions({}).graph
        mutated = [s.target for s in program.graph_signature.output_specs if s.kind.name == "BUFFER_MUTATION"]
        if mutated:
            self.notes.append(f"forward writes to {', '.join(map(str, mutated))}; the subnet keeps the traced value")

    def original(self, node: fx.Node) -> str:
        return self._names.get(node, node.name)

    def _rename_in_place(self) -> bool:
        """Swap ``add_`` for ``add`` where the written tensor is no view and has none; False if one is."""
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if not _mutates(node) or node.target is torch.ops.aten.detach_.default:
                env[node] = graph.node_copy(node, lambda n: env[n])
                self._names[env[node]] = node.name
                continue
            written, twin = node.args[0], _twin(node.target)
            if (
                twin is None
                or not isinstance(written, fx.Node)
                or written.op == "placeholder"
                or _aliased(written, node)
            ):
                return False
            new = graph.node_copy(node, lambda n: env[n])
            new.target = twin
            env[node] = env[written] = new
            self._names[new] = node.name
        self.graph = graph
        return True


def _mutates(node: fx.Node) -> bool:
    target = node.target
    return node.op == "call_function" and isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _twin(target: Any) -> Any:
    """``aten.add.Tensor`` for ``aten.add_.Tensor``; None where there is no such op."""
    name = target._schema.name.split("::")[1]
    packet = getattr(getattr(torch.ops, target.namespace), name.rstrip("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _aliased(written: fx.Node, writer: fx.Node) -> bool:
    """Whether ``written`` may share memory with another value that is still read after ``writer``."""
    chain = [written]
    while chain:
        node = chain.pop()
        if _is_view(node):
            return True
        for user in node.users:
            if user is not writer and _is_view(user):
                return True
    return False


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in target._schema.returns)
    return aliases or target._schema.name in (
        "aten::reshape", "aten::flatten", "aten::contiguous", "aten::to", "aten::chunk", "aten::dropout",
    )  # fmt: skip


def _is_check(target: Any) -> bool:
    name = getattr(target, "__name__", str(target))
    return "assert" in name or name.startswith("sym_constrain")


def _is_plain_copy(target: Any) -> bool:
    aten = torch.ops.aten
    return target in (aten.lift_fresh_copy.default, aten.detach_.default, aten.detach.default, aten.alias.default)


def _value(val: Any, hints: dict[str, int]) -> Any:
    if isinstance(val, torch.Tensor):
        sizes = [_size(s, hints) for s in val.shape]
        return Value(tuple(s[0] for s in sizes), val.dtype, tuple(s[1] for s in sizes))
    if isinstance(val, (list, tuple)):
        return tuple(_value(v, hints) for v in val)
    if isinstance(val, (torch.SymInt, int)) and not isinstance(val, bool):
        return Value((), None, (), _size(val, hints)[0])
    if isinstance(val, (torch.SymFloat, torch.SymBool, float, bool)):
        return Value((), None)
    return None


def _size(size: int | torch.SymInt, hints: dict[str, int]) -> tuple[int, str | None]:
    if isinstance(size, int):
        return size, None
    node = size.node
    expression = node.expr
    for symbol in expression.free_symbols:
        if str(symbol) not in hints:
            hint = (
                node.shape_env.backed_var_to_val.get(symbol) if hasattr(node.shape_env, "backed_var_to_val") else None
            )
            hint = node.shape_env.var_to_val.get(symbol) if hint is None else hint
            hints[str(symbol)] = int(hint) if hint is not None else 2
    return int(node.hint) if node.hint is not None else 2, str(expression)


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _source(node: fx.Node) -> str:
    """``file:line`` of the deepest line of the user's code that made ``node``."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(f, n) for f, n in found if not _is_library(f)]
    if not own:
        return ""
    path, line = own[-1]
    linecache.checkcache(path)
    return f"{path.rsplit('/', 1)[-1]}:{line}"


def _modules(node: fx.Node) -> tuple[str, ...]:
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(entry[0] for entry in stack.values() if isinstance(entry, tuple) and "hook" not in str(entry[0]))
