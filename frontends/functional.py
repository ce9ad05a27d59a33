"""An exported program as plain calls: regions inlined, transforms and in-place calls made functional."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import fx

from coppice.frontends.regions import casts, inlined


class Functional:
    """The program's graph without in-place calls: each becomes its functional twin, and later reads see the result."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program, self.graph = program, inlined(program.graph)
        self.notes: list[str] = []
        nodes = self.graph.nodes
        lowered = casts(program.graph) or any(map(_transforms, nodes))
        if lowered or (any(map(_mutates, nodes)) and not self._rename_in_place()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch copies tree specs of a class it has deprecated itself
                self.program = program.run_decompositions({})
            self.graph = inlined(self.program.graph)
        mutated = [s.target for s in self.program.graph_signature.output_specs if s.kind.name == "BUFFER_MUTATION"]
        if mutated:
            self.notes.append(f"forward writes to {', '.join(map(str, mutated))}; the subnet keeps the traced value")

    def _rename_in_place(self) -> bool:
        """Swap ``add_`` for ``add`` where the written tensor is no view and has none; False if one is."""
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            if not _mutates(node) or node.target is torch.ops.aten.detach_.default:
                env[node] = graph.node_copy(node, lambda n: env[n])
                continue
            written, twin = node.args[0], _twin(node.target)
            if twin is None or not isinstance(written, fx.Node) or written.op == "placeholder":
                return False
            if _aliased(written, order, order[node]):
                return False
            new = graph.node_copy(node, lambda n: env[n])
            new.target = twin
            env[node] = env[written] = new
        self.graph = graph
        return True


def _transforms(node: fx.Node) -> bool:
    """Whether ``node`` is part of a transform such as vmap."""
    module = getattr(node.target, "__module__", None) or ""
    return node.op == "call_function" and module.startswith("torch._functorch")


def _mutates(node: fx.Node) -> bool:
    target = node.target
    return node.op == "call_function" and isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _twin(target: Any) -> Any:
    """``aten.add.Tensor`` for ``aten.add_.Tensor``; None where there is no such op."""
    name = target._schema.name.split("::")[1]
    packet = getattr(getattr(torch.ops, target.namespace), name.rstrip("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _aliased(written: fx.Node, order: dict[fx.Node, int], at: int) -> bool:
    """Whether memory written at position ``at`` may be read later through a name other than ``written``.

    That is: through views made of it before, or through a tensor it is itself a view of and that something else reads.
    """
    if any(_is_view(user) and order[user] < at for user in written.users):
        return True
    node = written
    while _is_view(node):
        base = node.args[0]
        if not isinstance(base, fx.Node) or base.op != "call_function" or len(base.users) > 1:
            return True
        node = base
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
