"""The graph: a ``torch.fx.Graph`` of ATen calls plus what FX lacks: tensors by name, sharing, shapes, sources.

Nodes are of four kinds. ``placeholder`` is an input of the user's model, ``get_attr`` a parameter, buffer or constant
(its target is the canonical name of the tensor), ``call_function`` an ATen overload or an operator on symbolic sizes,
and ``output``. Every node carries ``meta["value"]`` (a `Value`, a tuple of them, or None), ``meta["source"]`` (the
user's ``file:line``) and ``meta["modules"]`` (names of the modules it ran in, outermost first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.fx import Node

from coppice.core.errors import StaleFactError, UsageError, VerifyError

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Value:
    """What is known of one tensor (or symbolic integer) without running the graph.

    ``shape`` holds concrete sizes at the traced example; ``symbols`` names the dynamic ones (``"8*s0"``) and is None
    where a size is fixed. ``dtype`` is None for a symbolic integer, whose ``shape`` is ``()`` and ``hint`` its value.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    symbols: tuple[str | None, ...] = ()
    hint: int | None = None

    def __post_init__(self) -> None:
        if not self.symbols:
            object.__setattr__(self, "symbols", (None,) * len(self.shape))


@dataclass(eq=False)
class Graph:
    """The graph of one model. Edges change only through its methods, and each change raises ``version``.

    ``tensors`` maps canonical names to the live tensors of the user's model (no copy); ``aliases`` maps every other
    name of a shared tensor to its canonical one. ``inputs`` are the example inputs, as (args, kwargs).
    """

    name: str
    fx: fx.Graph
    tensors: dict[str, torch.Tensor]
    aliases: dict[str, str]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    model: nn.Module | None = None
    notes: list[str] = field(default_factory=list)
    symbol_hints: dict[str, int] = field(default_factory=dict)
    spaces: WeakValueDictionary[str, Any] = field(default_factory=WeakValueDictionary, repr=False)
    """Spaces built over this graph that are still in use, by fingerprint: configs find their way back."""
    version: int = 0

    # ---- reading -------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        return list(self.fx.nodes)

    def placeholders(self) -> list[Node]:
        return [node for node in self.fx.nodes if node.op == "placeholder"]

    def output(self) -> Node:
        return next(node for node in reversed(self.nodes) if node.op == "output")

    def parameters(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.tensors.items() if isinstance(tensor, nn.Parameter)}

    def canonical(self, name: str) -> str:
        return self.aliases.get(name, name)

    @property
    def batch_dynamic(self) -> bool:
        """Whether some size of some input may change from call to call."""
        return bool(self.symbol_hints)

    @property
    def is_meta(self) -> bool:
        return any(tensor.is_meta for tensor in self.tensors.values())

    def expect(self, version: int, fact: str) -> None:
        """Raise `StaleFactError` unless the graph is still at ``version``, where ``fact`` was established."""
        if version != self.version:
            raise StaleFactError(
                f"{fact} was computed at version {version} of the graph, which is now at {self.version}",
                remedy="run the analysis again after changing the graph",
            )

    # ---- changing ------------------------------------------------------------------------------------------------

    def replace(self, node: Node, by: Node) -> None:
        """Let every user of ``node`` read ``by`` instead, and erase ``node``. ``by`` must come before all of them."""
        order = {n: i for i, n in enumerate(self.fx.nodes)}
        late = [user for user in node.users if by not in order or order[by] >= order[user]]
        if late or by is node:
            raise VerifyError(
                f"{by} does not come before {', '.join(map(str, late)) or 'itself'}", place=describe(node)
            )
        node.replace_all_uses_with(by)
        self.fx.erase_node(node)
        self.version += 1

    def erase_dead(self) -> int:
        """Erase calls and tensors that nothing uses; returns how many nodes left."""
        gone = 0
        for node in reversed(self.nodes):
            if not node.users and node.op in ("call_function", "get_attr"):
                self.fx.erase_node(node)
                gone += 1
        used = {str(node.target) for node in self.fx.nodes if node.op == "get_attr"}
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}
        self.aliases = {alias: name for alias, name in self.aliases.items() if name in used}
        if gone:
            self.version += 1
        return gone

    # ---- checking ------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Check every invariant of the language; raises `VerifyError` naming the node and its neighbours."""
        self.fx.lint()
        seen: set[fx.Node] = set()
        for node in self.fx.nodes:
            for used in node.all_input_nodes:
                if used not in seen:
                    raise VerifyError(f"uses {used} before it is computed", place=describe(node))
            if node.op == "get_attr":
                if node.target not in self.tensors:
                    raise VerifyError(f"no tensor is called {node.target!r}", place=describe(node))
                actual, noted = tuple(self.tensors[str(node.target)].shape), node.meta["value"].shape
                if actual != noted:
                    raise VerifyError(f"{node.target} has shape {actual} but is noted as {noted}", place=describe(node))
            elif node.op not in ("placeholder", "call_function", "output"):
                raise VerifyError(f"a node of kind {node.op!r} is not part of the language", place=describe(node))
            if node.op != "output" and "value" not in node.meta:
                raise VerifyError("its shape is not known", place=describe(node))
            seen.add(node)
        for alias, name in self.aliases.items():
            if name not in self.tensors or alias in self.tensors:
                raise VerifyError(f"{alias} is noted as another name of {name}, which is not so")

    # ---- running -------------------------------------------------------------------------------------------------

    def run(self, *args: Any, tensors: Mapping[str, torch.Tensor] | None = None, **kwargs: Any) -> Any:
        """Execute node by node with ``tensors`` in place of the graph's own; inputs and result as the user's model."""
        return self._execute(args, kwargs, tensors, None)

    def values(self, *args: Any, **kwargs: Any) -> dict[Node, Any]:
        """What every node computes on these inputs; all of it is held in memory at once."""
        seen: dict[Node, Any] = {}
        self._execute(args, kwargs, None, seen)
        return seen

    def _execute(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: Mapping[str, torch.Tensor] | None,
        seen: dict[Node, Any] | None,
    ) -> Any:
        tensors = self.tensors if tensors is None else tensors
        flat = self.flatten_inputs(args, kwargs)
        env: dict[Node, Any] = {}
        feed = iter(flat)
        remaining = {node: len(node.users) for node in self.fx.nodes}
        for node in self.fx.nodes:
            if node.op == "placeholder":
                env[node] = next(feed)
            elif node.op == "get_attr":
                env[node] = tensors[str(node.target)]
            elif node.op == "output":
                leaves = fx.map_arg(node.args[0], lambda n: env[n])
                return pytree.tree_unflatten(list(leaves), self.out_spec)
            else:
                call_args = fx.map_arg(node.args, lambda n: env[n])
                call_kwargs = fx.map_arg(node.kwargs, lambda n: env[n])
                env[node] = cast("Callable[..., Any]", node.target)(*call_args, **call_kwargs)
            if seen is not None:
                seen[node] = env[node]
            for used in node.all_input_nodes:
                remaining[used] -= 1
                if not remaining[used]:
                    del env[used]
        raise VerifyError("the graph has no output node")

    def flatten_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Flatten a call as the user makes it into the placeholders' order; `UsageError` if nested otherwise."""
        flat, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        if spec != self.in_spec:
            raise UsageError(
                f"the inputs have the structure {spec}, but the model was traced with {self.in_spec}",
                place=self.name,
                remedy="call with inputs nested like the example inputs",
            )
        for x, node in zip(flat, self.placeholders(), strict=True):
            _check_input(x, node, self.name)
        return flat


def _check_input(x: Any, node: Node, name: str) -> None:
    value = node.meta["value"]
    if not isinstance(value, Value) or value.dtype is None or not isinstance(x, torch.Tensor):
        return
    fits = x.ndim == len(value.shape) and all(
        symbol is not None or size == own for size, own, symbol in zip(x.shape, value.shape, value.symbols, strict=True)
    )
    if not fits:
        wanted = ", ".join(symbol or str(size) for size, symbol in zip(value.shape, value.symbols, strict=True))
        raise UsageError(
            f"input {node.target} has shape {tuple(x.shape)}, and the graph takes ({wanted})",
            place=name,
            remedy="give inputs shaped like the example inputs; named sizes may vary",
        )


def describe(node: Node) -> str:
    """``add_3 (model.py:41)``: how errors and reports name a node."""
    source = node.meta.get("source", "")
    return f"{node.name} ({source})" if source else node.name


def value_of(node: Node) -> Value:
    """The `Value` of a node that computes a single tensor."""
    value = node.meta["value"]
    if not isinstance(value, Value):
        raise VerifyError("it does not compute a single tensor", place=describe(node))
    return value


def is_tensor(node: Any) -> bool:
    """Whether ``node`` is a graph node that computes exactly one tensor."""
    return isinstance(node, Node) and isinstance(node.meta.get("value"), Value) and node.meta["value"].dtype is not None
