"""`Distillation`: the original model as the teacher of its subnet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from coppice.api.subnet import Subnet
from coppice.core.errors import UnsupportedError, UsageError
from coppice.core.extraction import sliced
from coppice.core.labels import Label
from coppice.core.names import unknown_name
from coppice.core.solve import Bools
from coppice.passes.train.distill import feature_gap, logits_of, soft_targets

PLACE = "Distillation"


class Distillation:
    """A loss that draws a student to its teacher, to be added to the task's own::

        distillation = coppice.Distillation(teacher=model, student=subnet, features=["block2"])
        for x, y in batches:
            output = subnet.module(x)
            loss = F.cross_entropy(output, y) + 0.5 * distillation(output, x)

    The loss is that of soft targets at ``temperature`` along ``axis`` of the logits (1 for maps of classes), plus
    ``feature_weight`` times the mean relative gap of the outputs of the modules called ``features``. Where the student
    is a `Subnet`, the teacher's features are cut to the units that stayed. Outputs may be tensors, or hold one called
    ``logits`` as those of transformers do; else ``logits`` picks it.

    The teacher runs in eval mode without gradients on the inputs of each call. Give it weights of its own: a model
    that is trained further at the same time is to be copied first (``copy.deepcopy``).

    Raises `UsageError` for a teacher that is its own student, a module neither has or runs, features of other shapes.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module | Subnet,
        *,
        temperature: float = 4.0,
        axis: int = -1,
        features: Sequence[str] = (),
        feature_weight: float = 1.0,
        logits: Callable[[Any], Tensor] = logits_of,
    ) -> None:
        module = student.module if isinstance(student, Subnet) else student
        if not isinstance(teacher, nn.Module) or not isinstance(module, nn.Module):
            what = f"{type(teacher).__name__} and {type(student).__name__}"
            raise UsageError(f"expected a model and a model or Subnet, got {what}", place=PLACE)
        shared = {id(p) for p in teacher.parameters()} & {id(p) for p in module.parameters()}
        if teacher is module or shared:
            raise UsageError(
                "the teacher shares its weights with the student",
                place=PLACE,
                remedy="copy.deepcopy the model before it is trained further",
            )
        if isinstance(features, str):
            raise UsageError("features is one name", place=PLACE, remedy=f"pass a list: [{features!r}]")
        self.teacher, self.temperature, self.axis = teacher, temperature, axis
        self.feature_weight, self.logits = feature_weight, logits
        self.keeps = {name: _keeps(student, name) if isinstance(student, Subnet) else () for name in features}
        self._seen: dict[str, Tensor] = {}
        self._wanted: dict[str, Tensor] = {}
        for model, into in ((module, self._seen), (teacher, self._wanted)):
            modules = dict(model.named_modules())
            for name in features:
                if name not in modules:
                    raise unknown_name("module", name, modules)
                modules[name].register_forward_hook(_Note(into, name))

    def __call__(self, output: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of the student's ``output`` on the inputs ``args`` and ``kwargs``, a scalar with its gradients."""
        with torch.no_grad():
            wanted = self.teacher.eval()(*args, **kwargs)
        loss = soft_targets(self.logits(output), self.logits(wanted), self.temperature, self.axis)
        gaps = [feature_gap(*self._pair(name)) for name in self.keeps]
        self._seen.clear()
        self._wanted.clear()
        return loss + self.feature_weight * torch.stack(gaps).mean() if gaps else loss

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        for who, into in (("student", self._seen), ("teacher", self._wanted)):
            if name not in into:
                raise UsageError(
                    f"this module of the {who} gave no single tensor in the last call",
                    place=f"{PLACE}: {name}",
                    remedy="name modules that the forward calls and that return one tensor, and call the student first "
                    "(a GraphModule calls no modules)",
                )
        student, teacher = self._seen[name], sliced(self._wanted[name], self.keeps[name])
        if student.shape != teacher.shape:
            raise UsageError(
                f"the student's features have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}",
                place=f"{PLACE}: {name}",
                remedy="pass the Subnet itself as the student: the teacher's features are then cut like it",
            )
        return student, teacher


class _Note:
    """A forward hook that keeps a module's result, with its gradients."""

    def __init__(self, into: dict[str, Tensor], name: str) -> None:
        self.into, self.name = into, name

    def __call__(self, module: nn.Module, inputs: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            self.into[self.name] = result


def _keeps(subnet: Subnet, name: str) -> tuple[Bools | None, ...]:
    """Which positions of the output of the module called ``name`` stay, axis by axis."""
    origin = subnet.extracted(PLACE)
    node = _output_of(origin.space.graph.nodes, name)
    label = origin.space.labels.get(node) if node is not None else None
    if not isinstance(label, Label):
        raise UnsupportedError(
            "the graph does not show one tensor as the result of this module",
            place=f"{PLACE}: {name}",
            remedy="name another module",
        )
    gone = origin.space.removed(subnet.config or origin.config)
    keeps = tuple(origin.space.axis_keep(axis, gone) for axis in label.axes)
    return tuple(None if keep.all() else keep for keep in keeps)


def _output_of(nodes: Sequence[fx.Node], name: str) -> fx.Node | None:
    """The last call made in a module whose result leaves it."""

    def inside(node: fx.Node) -> bool:
        return name in node.meta.get("modules", ())

    found = [n for n in nodes if inside(n) and any(not inside(user) for user in n.users)]
    return found[-1] if found else None
