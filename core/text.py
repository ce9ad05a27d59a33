"""The text form of a graph: Python syntax that is parsed, never executed, and parses back to the same graph.

def resnet(x: f32[s0=2, 3, 32, 32]):
    conv1_weight: f32[16, 3, 3, 3] = tensor("conv1.weight")
    conv2d: f32[s0, 16, 32, 32] = aten.conv2d.default(x, conv1_weight, None, [1, 1], [1, 1])  # model.py:41
    return (conv2d,)
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
import re
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from coppice.core.errors import UsageError
from coppice.core.graph import Graph, Value
from coppice.core.higher import HigherOrder
from coppice.core.ops import lookup

SHORT = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
    torch.complex64: "c64", torch.complex128: "c128",
}  # fmt: skip
LONG = {short: dtype for dtype, short in SHORT.items()}
LAYOUTS = {"strided": torch.strided}
FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
OPERATORS = {
    name: getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg", "truediv")
}
OPERATORS |= {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "pow")}
MAX_TEXT = 64 << 20


# ---- printing ------------------------------------------------------------------------------------------------------


def to_text(graph: Graph) -> str:
    """Print ``graph``. Every size that may change is named; its traced value stands where it is first seen."""
    seen: set[str] = set()
    inputs = [f"{n.name}: {_value_text(n.meta['value'], graph.symbol_hints, seen)}" for n in graph.placeholders()]
    lines = [f"def {_identifier(graph.name)}({', '.join(inputs)}):"]
    for node in graph.fx.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            lines.append(f"    return {_literal(node.args[0])}")
            continue
        if node.op == "get_attr":
            call = f"tensor({str(node.target)!r})"
        else:
            args = [_literal(a) for a in node.args] + [f"{k}={_literal(v)}" for k, v in node.kwargs.items()]
            call = f"{target_name(node.target)}({', '.join(args)})"
        source = node.meta.get("source", "")
        comment = f"  # {source}" if source else ""
        lines.append(f"    {node.name}: {_value_text(node.meta['value'], graph.symbol_hints, seen)} = {call}{comment}")
    return "\n".join(lines) + "\n"


def target_name(target: Any) -> str:
    """``aten.conv2d.default``, ``operator.mul``, or ``higher_order.cond``, which is not parsed back."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
    if isinstance(target, HigherOrder):
        return repr(target)
    name = getattr(target, "__name__", "")
    if OPERATORS.get(name) is target:
        return f"operator.{name}"
    raise UsageError(f"{target} has no text form", place="to_text", remedy="only ATen calls can be saved")


def _identifier(name: str) -> str:
    name = re.sub(r"\W", "_", name) or "graph"
    return f"_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name


def size_text(expression: str) -> str:
    """A size in symbols as it is written everywhere: ``2*s0*2//4`` for ``(2 * s0) * 2 // 4``."""
    return ast.unparse(ast.parse(expression, mode="eval")).replace(" ", "")


def _value_text(value: Any, hints: dict[str, int], seen: set[str]) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_value_text(v, hints, seen) for v in value)},)"
    if value is None:
        return "None"
    if value.dtype is None:
        return "size" if value.hint is None else f"size({value.hint})"
    sizes = []
    for size, symbol in zip(value.shape, value.symbols, strict=True):
        if symbol is None:
            sizes.append(str(size))
        elif symbol in hints and symbol not in seen:
            seen.add(symbol)
            sizes.append(f"{symbol}:{hints[symbol]}")
        else:
            sizes.append(symbol if re.fullmatch(r"[\w\s*+/()-]+", symbol) else str(size))
    return f"{SHORT[value.dtype]}[{', '.join(sizes) or '()'}]"


def _literal(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_literal(v) for v in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(k)}: {_literal(v)}' for k, v in value.items())}}}"
    if isinstance(value, torch._ops.OpOverload):
        return target_name(value)
    if isinstance(value, torch.dtype):
        return SHORT[value]
    if isinstance(value, torch.device):
        return f"device({value.type!r})"
    if isinstance(value, (torch.memory_format, torch.layout)):
        return str(value).removeprefix("torch.")
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    raise UsageError(f"{value!r} of type {type(value).__name__} has no text form", place="to_text")


# ---- parsing -------------------------------------------------------------------------------------------------------


def from_text(
    text: str,
    tensors: dict[str, torch.Tensor],
    *,
    in_spec: pytree.TreeSpec | None = None,
    out_spec: pytree.TreeSpec | None = None,
    aliases: dict[str, str] | None = None,
) -> Graph:
    """Parse a graph; ``tensors`` gives the data for ``tensor("name")``. Nothing in ``text`` is executed.

    Without specs, inputs are positional and the result is what the text returns. Raises `UsageError` naming the line.
    """
    if len(text) > MAX_TEXT:
        raise UsageError(f"the text has {len(text)} characters, more than {MAX_TEXT}", place="graph text")
    try:
        tree = ast.parse(_with_hints(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"not a graph: {error}", place="graph text", remedy="see docs/text-form.md") from None
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        raise UsageError("expected exactly one `def name(inputs):`", place="graph text")
    parser = _Parser(tensors)
    graph = parser.function(tree.body[0])
    count = len(parser.inputs)
    for kind, spec, found in (("inputs", in_spec, count), ("outputs", out_spec, len(parser.returned))):
        if spec is not None and spec.num_leaves != found:
            raise UsageError(f"the text has {found} {kind}, its structure {spec.num_leaves}", place="graph text")
    default_in = pytree.tree_structure((tuple(range(count)), {}))
    result = Graph(
        name=tree.body[0].name,
        fx=graph,
        tensors={n: t for n, t in tensors.items() if n in parser.used},
        aliases=dict(aliases or {}),
        in_spec=in_spec or default_in,
        out_spec=out_spec or parser.default_out(),
        symbol_hints=parser.hints,
    )
    result.verify()
    return result


def _with_hints(text: str) -> str:
    """``[s0:2, ...]`` is a slice in Python's grammar already; comments with the source line become calls."""
    return re.sub(r"^(    \w+: .*?)  # (.+)$", lambda m: f"{m[1]}; source({m[2]!r})", text, flags=re.M)


def _takes_tensors(op: torch._ops.OpOverload) -> bool:
    return any("Tensor" in str(argument.type) for argument in op._schema.arguments)


class _Parser:
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.graph = fx.Graph()
        self.env: dict[str, fx.Node] = {}
        self.hints: dict[str, int] = {}
        self.inputs: list[fx.Node] = []
        self.used: set[str] = set()
        self.returned: Any = ()

    def function(self, tree: ast.FunctionDef) -> fx.Graph:
        for argument in tree.args.args:
            node = self.graph.create_node("placeholder", argument.arg, name=argument.arg)
            self.define(argument.arg, node, argument.annotation, argument)
            self.inputs.append(node)
        last: fx.Node | None = None
        for statement in tree.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                last = self.assign(statement.target.id, statement)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and last is not None:
                last.meta["source"] = str(ast.literal_eval(statement.value.args[0]))
            elif isinstance(statement, ast.Return) and statement.value is not None:
                self.returned = self.literal(statement.value)
                self.graph.output(self.returned).meta.update(value=None, source="", modules=())
            else:
                raise self.error(statement, "expected `name: type = op(...)` or `return`")
        return self.graph

    def default_out(self) -> pytree.TreeSpec:
        single = len(self.returned) == 1
        return pytree.tree_structure(0 if single else tuple(range(len(self.returned))))

    def assign(self, name: str, statement: ast.AnnAssign) -> fx.Node:
        call = statement.value
        if not isinstance(call, ast.Call):
            raise self.error(statement, "the right side must be a call")
        if isinstance(call.func, ast.Name) and call.func.id == "tensor":
            key = str(ast.literal_eval(call.args[0]))
            if key not in self.tensors:
                raise self.error(statement, f"there is no tensor called {key!r}")
            self.used.add(key)
            node = self.graph.create_node("get_attr", key, name=name)
        else:
            args = tuple(self.literal(a) for a in call.args)
            kwargs = {str(k.arg): self.literal(k.value) for k in call.keywords}
            node = self.graph.create_node("call_function", self.target(call.func), args, kwargs, name=name)
        self.define(name, node, statement.annotation, statement)
        return node

    def define(self, name: str, node: fx.Node, annotation: ast.expr | None, at: ast.AST) -> None:
        if name in self.env or node.name != name:
            raise self.error(at, f"the name {name} is taken")
        if annotation is None:
            raise self.error(at, f"{name} has no type")
        node.meta.update(value=self.value(annotation), source="", modules=())
        self.env[name] = node

    def target(self, tree: ast.expr) -> Any:
        parts = ast.unparse(tree).split(".")
        if parts[0] == "operator" and len(parts) == 2 and parts[1] in OPERATORS:
            return OPERATORS[parts[1]]
        space = getattr(torch.ops, parts[0], None) if len(parts) == 3 else None
        if isinstance(space, torch._ops._OpNamespace):
            overload = getattr(getattr(space, parts[1], None), parts[2], None)
            if isinstance(overload, torch._ops.OpOverload) and not overload._schema.is_mutable:
                if lookup(overload) is None and not _takes_tensors(overload):
                    raise self.error(tree, f"{'.'.join(parts)} takes no tensor: it may read more than this text")
                return overload
        own = len(parts) == 3 and parts[0] not in ("aten", "prims")
        remedy = (
            f"if it is an op of your own, import the module that defines {parts[0]}::{parts[1]} first" if own else ""
        )
        raise self.error(tree, f"there is no op called {'.'.join(parts)}", remedy)

    def value(self, tree: ast.expr) -> Any:
        if isinstance(tree, ast.Tuple):
            return tuple(self.value(e) for e in tree.elts)
        if isinstance(tree, ast.Constant) and tree.value is None:
            return None
        if isinstance(tree, ast.Name) and tree.id == "size":
            return Value((), None)
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "size":
            return Value((), None, (), int(ast.literal_eval(tree.args[0])))
        if isinstance(tree, ast.Subscript) and isinstance(tree.value, ast.Name) and tree.value.id in LONG:
            sizes = tree.slice.elts if isinstance(tree.slice, ast.Tuple) else [tree.slice]
            shape = [self.size(s) for s in sizes]
            return Value(tuple(s[0] for s in shape), LONG[tree.value.id], tuple(s[1] for s in shape))
        raise self.error(tree, f"{ast.unparse(tree)} is no type")

    def size(self, tree: ast.expr) -> tuple[int, str | None]:
        if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
            return tree.value, None
        if isinstance(tree, ast.Slice) and isinstance(tree.lower, ast.Name) and isinstance(tree.upper, ast.Constant):
            self.hints[tree.lower.id] = int(tree.upper.value)  # type: ignore[arg-type]
            return self.hints[tree.lower.id], tree.lower.id
        return self.arithmetic(tree), size_text(ast.unparse(tree))

    def arithmetic(self, tree: ast.expr) -> int:
        if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
            return tree.value
        if isinstance(tree, ast.Name) and tree.id in self.hints:
            return self.hints[tree.id]
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            return -self.arithmetic(tree.operand)
        if isinstance(tree, ast.BinOp):
            a, b = self.arithmetic(tree.left), self.arithmetic(tree.right)
            for kind, apply in ((ast.Add, operator.add), (ast.Sub, operator.sub), (ast.Mult, operator.mul)):
                if isinstance(tree.op, kind):
                    return int(apply(a, b))
            if isinstance(tree.op, (ast.FloorDiv, ast.Div)) and b:
                return a // b
        raise self.error(tree, f"{ast.unparse(tree)} is no size")

    def literal(self, tree: ast.expr) -> Any:
        if isinstance(tree, ast.Name):
            for table in (self.env, LONG, FORMATS, LAYOUTS):
                if tree.id in table:
                    return table[tree.id]
            raise self.error(tree, f"{tree.id} is not defined before it is used")
        if isinstance(tree, ast.List):
            return [self.literal(e) for e in tree.elts]
        if isinstance(tree, ast.Tuple):
            return tuple(self.literal(e) for e in tree.elts)
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in ("device", "float"):
            text = str(ast.literal_eval(tree.args[0]))
            return torch.device(text) if tree.func.id == "device" else float(text)
        try:
            return ast.literal_eval(tree)
        except ValueError:
            raise self.error(tree, f"{ast.unparse(tree)} is no literal") from None

    @staticmethod
    def error(tree: ast.AST, fact: str, remedy: str = "") -> UsageError:
        return UsageError(fact, place=f"graph text, line {getattr(tree, 'lineno', '?')}", remedy=remedy)
