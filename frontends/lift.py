"""From an exported program to a graph: tensors by canonical name, functional calls, sizes, sources."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from coppice.core.errors import TraceError
from coppice.core.graph import Graph, Value
from coppice.core.higher import HigherOrder
from coppice.frontends.functional import Functional


def lift(model: nn.Module, program: torch.export.ExportedProgram, name: str) -> Graph:
    """Rebuild the program as our language: tensors by canonical name, no in-place calls, no assertions."""
    source = Functional(program)
    program = source.program
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
            own = sum(spec.kind.name == "USER_OUTPUT" for spec in signature.output_specs)  # they come last
            results = list(node.args[0])[len(node.args[0]) - own :]
            new = graph.output(tuple(fx.map_arg(results, lambda n: env[n])))
            new.meta.update(value=None, source="", modules=())
        elif node.op == "get_attr" and isinstance(_held(program.graph_module, node), fx.GraphModule):
            env[node] = str(node.target)  # a name among the arguments of the operator that runs it
        elif node.op == "call_function":
            env[node] = _copy_call(graph, node, env, hints)
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                held = {
                    str(n.target): _held(program.graph_module, n) for n in node.all_input_nodes if n.op == "get_attr"
                }
                env[node].target = HigherOrder(node.target, held)
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


def _held(module: nn.Module, node: fx.Node) -> Any:
    return getattr(module, str(node.target), None)


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
    if not expression.free_symbols:  # a size that the trace has pinned
        return int(expression), None
    for symbol in expression.free_symbols:
        if str(symbol) not in hints:
            known = getattr(node.shape_env, "backed_var_to_val", None)
            hint = (node.shape_env.var_to_val if known is None else known).get(symbol)
            hints[str(symbol)] = int(hint) if hint is not None else 2
    return int(node.hint) if node.hint is not None else 2, str(expression)


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _source(node: fx.Node) -> str:
    """``file:line`` of the deepest line of the user's code that made ``node``."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(f, n) for f, n in found if not is_library(f)]
    if not own:
        return ""
    path, line = own[-1]
    return f"{Path(path).name}:{line}"


def _modules(node: fx.Node) -> tuple[str, ...]:
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(entry[0] for entry in stack.values() if isinstance(entry, tuple) and "hook" not in str(entry[0]))


_LIBRARIES = tuple(
    f"{folder}{os.sep}"
    for folder in (
        Path(torch.__file__).parent,
        *(Path(__file__).parent.parent / part for part in ("core", "passes", "frontends", "backends", "cli")),
    )
)


def is_library(path: str) -> bool:
    """Whether a stack frame's file belongs to torch or to us rather than to the user's model."""
    return path.startswith(("<", *_LIBRARIES))
