"""Losses that draw a student to its teacher: soft targets, and features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from coppice.core.errors import UsageError


def soft_targets(student: Tensor, teacher: Tensor, temperature: float = 4.0, axis: int = -1) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) along ``axis``, averaged over all other axes.

    The factor T^2 keeps its gradients as large as those of a loss on hard labels beside it (Hinton et al., 2015). Both
    are logits of one shape; computed in float32 at least.
    """
    if student.shape != teacher.shape:
        raise UsageError(
            f"the student's logits have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}",
            place="distillation",
            remedy="give both models the same inputs; outputs of a subnet keep their shape",
        )
    if not temperature > 0:
        raise UsageError(f"temperature is {temperature}", place="distillation", remedy="give a positive number, 4 say")
    wide = torch.promote_types(student.dtype, torch.float32)
    wanted = F.log_softmax(teacher.detach().to(wide) / temperature, axis)
    found = F.log_softmax(student.to(wide) / temperature, axis)
    divergence = F.kl_div(found, wanted, reduction="none", log_target=True).sum(axis)
    return divergence.mean() * temperature**2


def feature_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean square of the difference, relative to the mean square of the teacher's features."""
    wide = torch.promote_types(student.dtype, torch.float32)
    wanted = teacher.detach().to(wide)
    return F.mse_loss(student.to(wide), wanted) / wanted.square().mean().clamp_min(torch.finfo(wide).tiny)


def logits_of(output: Any) -> Tensor:
    """The logits of a model's output: the tensor itself, the entry ``logits``, or the only floating point tensor.

    Raises `UsageError` where that is not one tensor.
    """
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        chosen: Tensor = output["logits"]
        return chosen
    found = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"the output holds {len(found)} floating point tensors, none of them called logits",
        place="distillation",
        remedy="say which one: logits=lambda output: output[0]",
    )
