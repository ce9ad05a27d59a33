"""Operators that run graphs of their own. Nothing is known of what happens inside, so what passes through stays."""

from __future__ import annotations

from coppice.core.calls import Call
from coppice.core.graph import Value
from coppice.core.higher import HigherOrder
from coppice.core.labels import Flow, Label, Reason, free
from coppice.core.ops import Op, row

WHAT = {
    "cond": "chooses between subgraphs",
    "while_loop": "repeats a subgraph as long as a condition holds",
    "map_impl": "runs a subgraph for every position of an axis",
    "scan": "runs a subgraph step by step",
    "associative_scan": "runs a subgraph step by step",
    "flex_attention": "runs a subgraph on every score",
}
OTHER = "runs an operator or graph that it is given"
REMEDY = "write it with tensor operations (torch.where in place of torch.cond), or leave it out of the pruned part"


def _held(flow: Flow, call: Call) -> Label | tuple[Label, ...]:
    name = getattr(call.target, "__name__", "")
    why = f"passes through `{name}`, which {WHAT.get(name, OTHER)}"
    for node in call.node.all_input_nodes:
        label = flow.labels[node]
        for part in label if isinstance(label, tuple) else (label,):
            flow.freeze_label(part, why, REMEDY)
    value = call.node.meta["value"]
    origin = Reason(why, call.node.name, call.source, REMEDY)
    made = tuple(
        Label(tuple(free(size, origin) for size in leaf.shape) if isinstance(leaf, Value) else ())
        for leaf in (value if isinstance(value, tuple) else (value,))
    )
    return made if isinstance(value, tuple) else made[0]


def other(target: HigherOrder) -> Op:
    """The row of an operator that is not listed."""
    return Op(repr(target), _held)


row(*(f"higher_order.{name}" for name in WHAT), labels=_held)
