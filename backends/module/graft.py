"""One module's forward replaced by the graph's: where the code of a module cannot be written at its new sizes.

``x.reshape(batch, length, dim)`` holds only while heads times head width is the input's width; once it is not, no
attribute can mend it. The module keeps its class, parameters and place; its ``forward`` becomes the part of the small
graph that was traced in it, called with the same arguments. It computes what the module does in eval mode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from coppice.core.errors import UnsupportedError
from coppice.core.extraction import Extraction, low_name
from coppice.core.graph import FLOATING, Graph, Value, is_tensor
from coppice.core.tensors import named_tensors


@dataclass(frozen=True)
class Result:
    """The result of this number of a piece of code."""

    number: int


class Grafted:
    """A forward: ``code`` over the tensors among the arguments' leaves ``takes`` and the module's tensors ``names``.

    The result is ``leaves`` nested as in ``spec``, where a `Result` stands for one of the code's results. A call
    whose arguments differ from the example's in more than tensors raises `UnsupportedError`: a cache, say, or a flag.
    """

    def __init__(
        self,
        module: nn.Module,
        code: fx.GraphModule,
        takes: list[int],
        names: list[str],
        leaves: list[Any],
        spec: TreeSpec,
        given: Sequence[Any],
    ) -> None:
        self.module, self.code = module, code
        self.takes, self.names = takes, names
        self.leaves, self.spec = leaves, spec
        self.given = _kinds(given)
        self.widened: fx.GraphModule | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = tree_leaves((args, kwargs))
        if _kinds(given) != self.given:
            raise UnsupportedError(
                "it was rewritten for the arguments of the example inputs, and is called with others",
                place=f"forward of {type(self.module).__name__}",
                remedy="call the model as in the example (use_cache=False, say), or extract a config that keeps the "
                "module's own forward",
            )
        wide = any(isinstance(x, torch.Tensor) and x.dtype is torch.float64 for x in given)
        code = self._wide() if wide else self.code
        results = code(*(given[k] for k in self.takes), *(attrgetter(name)(self.module) for name in self.names))
        return tree_unflatten([results[x.number] if isinstance(x, Result) else x for x in self.leaves], self.spec)

    def _wide(self) -> fx.GraphModule:
        """The code for a module in double precision: it casts to float64 where it casts to a floating type."""
        if self.widened is None:
            self.widened = copy.deepcopy(self.code).double()
            for node in self.widened.graph.nodes:
                node.args, node.kwargs = tree_map(_double, (tuple(node.args), dict(node.kwargs)), is_leaf=_is_leaf)
            self.widened.recompile()
        return self.widened


def _double(x: Any) -> Any:
    return torch.float64 if isinstance(x, torch.dtype) and x in FLOATING else x


def _is_leaf(x: Any) -> bool:
    return isinstance(x, (fx.Node, torch.dtype))


def _kinds(given: Sequence[Any]) -> list[Any]:
    return [torch.Tensor if isinstance(x, torch.Tensor) else x for x in given]


@dataclass
class Seen:
    """The arguments and the result of each module's call in one run; None for a module that was called twice."""

    calls: dict[str, tuple[list[Any], Any] | None]


def record(model: nn.Module, graph: Graph) -> Seen:
    """Run ``model`` on the example inputs of ``graph`` and keep what its modules took and gave."""
    assert graph.inputs is not None
    seen = Seen({})
    hooks = []

    def note(path: str, args: Any, kwargs: Any, result: Any) -> None:
        seen.calls[path] = None if path in seen.calls else (tree_leaves((args, kwargs)), result)

    for path, module in model.named_modules():
        hooks.append(module.register_forward_hook(lambda _m, a, k, r, path=path: note(path, a, k, r), with_kwargs=True))
    try:
        args, kwargs = graph.inputs
        model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def places(extraction: Extraction, model: nn.Module, averages: bool) -> tuple[str, ...]:
    """The modules of the user's whose own calls changed their arguments, or went, with the cut; none inside another.

    With ``averages``, those too that average over units.
    """
    known = dict(model.named_modules())
    changed = {sizes.modules[-1] for sizes in extraction.sizes if sizes.modules and sizes.changed}
    changed |= {modules[-1] for modules in extraction.joined if modules}
    if averages:
        changed |= {recount.modules[-1] for recount in extraction.recounts if recount.modules}
    own = {path for path in changed if path and not type(known.get(path)).__module__.startswith("torch.nn.")}
    return tuple(sorted(path for path in own if not any(path.startswith(f"{other}.") for other in own)))


def graft(own: nn.Module, graph: Graph, extraction: Extraction, paths: Iterable[str], seen: Seen) -> None:
    """Replace the forward of the modules at ``paths`` of ``own``; raises `ValueError` where that cannot be done."""
    assert graph.inputs is not None
    args, kwargs = graph.inputs
    with torch.no_grad():
        values = graph.values(*args, **kwargs)
    for path in paths:
        call = seen.calls.get(path)
        made = None if call is None else _forward(own.get_submodule(path), path, graph, extraction, values, *call)
        if made is None:
            twice = " is called twice" if call is None else " uses more than its arguments and tensors"
            raise ValueError(f"{path}{twice}")
        vars(own.get_submodule(path))["forward"] = made


def _forward(
    module: nn.Module,
    path: str,
    graph: Graph,
    extraction: Extraction,
    values: Mapping[fx.Node, Any],
    given: Sequence[Any],
    result: Any,
) -> Grafted | None:
    region = [node for node in graph.fx.nodes if node.op == "call_function" and path in node.meta.get("modules", ())]
    inside = set(region)
    leaves, spec = tree_flatten(result)
    outputs: list[fx.Node] = []
    template: list[Any] = []
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            template.append(leaf)
            continue
        node = next((n for n in reversed(region) if _equal(values[n], leaf)), None)
        if node is None:
            return None
        template.append(Result(len(outputs)))
        outputs.append(node)
    builder = _Builder(path, graph, extraction, inside, values, given)
    code = builder.build(outputs)
    return None if code is None else Grafted(module, code, builder.takes, builder.names, template, spec, given)


class _Builder:
    """The small graph's code between a module's arguments and some nodes of its region."""

    def __init__(
        self,
        path: str,
        graph: Graph,
        extraction: Extraction,
        inside: set[fx.Node],
        values: Mapping[fx.Node, Any],
        given: Sequence[Any],
    ) -> None:
        self.path, self.graph, self.extraction, self.inside = path, graph, extraction, inside
        self.values, self.given = values, given
        self.takes: list[int] = []
        self.names: list[str] = []
        self.body = fx.Graph()
        self.outside = {node: None for one in inside for node in one.all_input_nodes if node not in inside}
        model = graph.model
        assert model is not None
        self.known = {*named_tensors(model), *(low_name(bias) for bias in extraction.folded)}
        self.sources: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.fx.nodes:
            small = extraction.node(node)
            if small is not None:
                self.sources.setdefault(small, []).append(node)

    def build(self, outputs: Sequence[fx.Node]) -> fx.GraphModule | None:
        """None where the code needs something that is neither an argument nor a tensor of the module."""
        small = [self.extraction.node(node) for node in outputs]
        results = [node for node in small if node is not None]
        wanted = self._closure(results) if len(results) == len(small) else None
        if wanted is None:
            return None
        arguments, tensors, sizes, calls = wanted
        env: dict[fx.Node, fx.Node] = {}
        holders = {}
        for k in sorted({*arguments.values(), *(k for k, _ in sizes.values())}):
            holders[k] = self.body.placeholder(f"argument_{k}")
            self.takes.append(k)
        for node in tensors:
            env[node] = self.body.placeholder(node.name)
            self.names.append(str(node.target)[len(self.path) + 1 :])
        for node, k in arguments.items():
            env[node] = holders[k]
        for node, (k, axis) in sizes.items():
            env[node] = self.body.call_function(torch.ops.aten.sym_size.int, (holders[k], axis))
        root = nn.Module()
        for node in calls:
            env[node] = new = self.body.node_copy(node, lambda n: env[n])
            if node.op == "get_attr":
                constant = self._constant(node)
                assert constant is not None
                new.target = f"constant_{len(root._buffers)}"
                root.register_buffer(new.target, constant.detach().clone())
        self.body.output(tuple(env[node] for node in results))
        return fx.GraphModule(root, self.body)

    def _constant(self, node: fx.Node) -> torch.Tensor | None:
        """The tensor of a node that the model holds under no name: a literal of its forward."""
        name = str(node.target)
        return None if name in self.known else self.extraction.graph.tensors[name]

    def _closure(self, outputs: Sequence[fx.Node]) -> Any:
        arguments: dict[fx.Node, int] = {}
        sizes: dict[fx.Node, tuple[int, int]] = {}
        tensors: dict[fx.Node, None] = {}
        calls: set[fx.Node] = set()
        stack, done = list(outputs), set()
        while stack:
            node = stack.pop()
            if node in done:
                continue
            done.add(node)
            origins = self.sources.get(node, [])
            outside = [origin for origin in origins if origin not in self.inside]
            if node.op == "get_attr" and self._constant(node) is not None:
                calls.add(node)
                continue
            if node.op == "get_attr" and str(node.target).startswith(f"{self.path}."):
                tensors[node] = None
                continue
            if not outside and node.op != "get_attr":
                calls.add(node)
                stack += node.all_input_nodes
                continue
            at = next((k for k, x in enumerate(self.given) if any(_equal(self.values[o], x) for o in outside)), None)
            found = [size for size in map(self._size, outside) if size is not None]
            if at is not None:
                arguments[node] = at
            elif found:
                sizes[node] = found[0]
            elif node.op == "call_function":  # made from constants alone, a mask say: made again
                calls.add(node)
                stack += node.all_input_nodes
            else:
                return None
        order = [node for node in self.extraction.graph.fx.nodes if node in calls]
        return arguments, tensors, sizes, order

    def _size(self, node: fx.Node) -> tuple[int, int] | None:
        """An argument and axis whose dynamic size is the one that ``node`` reads off another value."""
        operand = node.args[0] if node.args else None
        reads = isinstance(operand, fx.Node) and is_tensor(operand) and len(node.args) == 2 and not is_tensor(node)
        if not reads or not isinstance(operand, fx.Node):
            return None
        value, axis = operand.meta["value"], node.args[1]
        assert isinstance(value, Value) and isinstance(axis, int)
        symbol = value.symbols[axis]
        for other in self.outside:
            if symbol is not None and is_tensor(other) and symbol in other.meta["value"].symbols:
                at = next((k for k, x in enumerate(self.given) if _equal(self.values[other], x)), None)
                if at is not None:
                    return at, other.meta["value"].symbols.index(symbol)
        return None


def _equal(a: Any, b: Any) -> bool:
    """Whether two tensors are one value, computed perhaps by different kernels."""
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a is b or torch.equal(a, b):
        return True
    return a.is_floating_point() and bool((a - b).abs().max() <= 1e-5 * b.abs().max())
