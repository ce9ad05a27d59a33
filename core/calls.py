"""One ATen call seen through its schema: arguments by name, defaults filled in."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from coppice.core.graph import Value, describe, is_tensor, value_of


class Call:
    """A ``call_function`` node whose arguments are read by their schema names: ``call["groups"]``."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node
        self.target = node.target
        schema = node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
        self.names: list[str] = [a.name for a in schema.arguments] if schema else []
        self.arguments: dict[str, Any] = {}
        if schema:
            for position, argument in enumerate(schema.arguments):
                if position < len(node.args):
                    self.arguments[argument.name] = node.args[position]
                elif argument.name in node.kwargs:
                    self.arguments[argument.name] = node.kwargs[argument.name]
                elif argument.has_default_value():
                    self.arguments[argument.name] = argument.default_value
        else:
            self.names = [f"arg{i}" for i in range(len(node.args))]
            self.arguments = dict(zip(self.names, node.args, strict=True))

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    @property
    def place(self) -> str:
        return describe(self.node)

    @property
    def source(self) -> str:
        return str(self.node.meta.get("source", ""))

    @property
    def out(self) -> Value:
        return value_of(self.node)

    def tensors(self) -> list[tuple[str, fx.Node]]:
        """The arguments that are single tensors, by name, in schema order."""
        return [(name, node) for name, node in self.arguments.items() if is_tensor(node)]

    def with_arguments(self, changes: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The node's (args, kwargs) with some arguments replaced by name."""
        args, kwargs = list(self.node.args), dict(self.node.kwargs)
        for name, new in changes.items():
            position = self.names.index(name)
            if position < len(args):
                args[position] = new
            else:
                kwargs[name] = new
        return tuple(args), kwargs


def op_name(target: Any) -> str:
    """``aten.conv2d`` for every overload of ``torch.ops.aten.conv2d``; ``operator.mul`` for Python operators."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}"
    module = getattr(target, "__module__", "")
    return f"{'operator' if module == '_operator' else module}.{getattr(target, '__name__', target)}"
