"""Scores: how much a unit matters. Higher stays longer; each is the sum over the slices its removal zeroes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from coppice.core.errors import UnsupportedError, UsageError
from coppice.core.names import unknown_name
from coppice.core.space import Floats, Space

Loss = Callable[[Any, Any], torch.Tensor]
Scores = dict[str, Floats]


def magnitude(space: Space) -> Scores:
    """The share of each tensor's squared norm that the unit holds, summed over its slices (`Space.magnitudes`)."""
    return space.magnitudes()


def random(space: Space, seed: int = 0) -> Scores:
    """Uniform noise: the control that every other score must beat."""
    rng = np.random.default_rng(seed)
    return {f.name: rng.random(f.size) for f in space.families}


def taylor(space: Space, calibration: Iterable[Any], loss: Loss | None = None) -> Scores:
    """|sum x g| over the unit's slices: the first-order change of the loss without them (Molchanov et al., 2019).

    ``calibration`` yields batches: inputs as the model takes them, or (inputs, targets). ``loss(output, targets)``
    defaults to cross entropy for integer targets, mean squared error for others, and the mean square of the output
    where there are none. Gradients are averaged over batches; the model is not touched.
    """
    if space.graph.is_meta:
        raise UnsupportedError("gradients need data, and the model is on meta tensors", place="score taylor")
    tensors = {
        name: t.detach().requires_grad_(isinstance(t, nn.Parameter) and t.is_floating_point())
        for name, t in space.graph.tensors.items()
    }
    wanted = [name for name, t in tensors.items() if t.requires_grad]
    totals = {name: torch.zeros_like(tensors[name]) for name in wanted}
    count = 0
    for args, kwargs, targets in batches(space, calibration):
        with torch.enable_grad():
            value = (loss or default_loss)(space.graph.run(*args, tensors=tensors, **kwargs), targets)
        grads = torch.autograd.grad(value, [tensors[n] for n in wanted], allow_unused=True)
        for name, grad in zip(wanted, grads, strict=True):
            if grad is not None:
                totals[name] += grad
        count += 1
    if not count:
        raise UsageError(
            "the taylor score needs calibration batches",
            place="prune",
            remedy="pass calibration=[(inputs, targets), ...]",
        )
    products = {name: tensors[name].detach() * total / count for name, total in totals.items()}
    sums = np.abs(space.unit_sums(products))
    return {f.name: sums[f.classes] for f in space.families}


def batches(space: Space, calibration: Iterable[Any]) -> Iterable[tuple[tuple[Any, ...], dict[str, Any], Any]]:
    """Read calibration batches as (args, kwargs, targets), telling (inputs, targets) from positional inputs."""
    spec = space.graph.in_spec
    positional = spec.children()[0].num_children
    for batch in listed(calibration):
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        paired = pair and (positional == 1 or isinstance(batch[0], (tuple, list, dict)))
        inputs, targets = batch if paired else (batch, None)
        if isinstance(inputs, dict):
            yield (), dict(inputs), targets
        else:
            yield tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}, targets


def listed(calibration: Iterable[Any]) -> Iterable[Any]:
    """``calibration`` itself, or `UsageError` where it is a single batch or nothing that yields batches."""
    if isinstance(calibration, (torch.Tensor, Mapping, str)) or not isinstance(calibration, Iterable):
        raise UsageError(
            f"it is a {type(calibration).__name__}, not several batches",
            place="calibration",
            remedy="pass a list of batches, or a data loader",
        )
    return calibration


def default_loss(output: Any, targets: Any) -> torch.Tensor:
    """Cross entropy for integer targets, mean squared error for others, mean square of the output without any."""
    first = next((x for x in _tensors(output) if x.is_floating_point()), None)
    if first is None:
        raise UsageError("the model returns no floating point tensor", place="score taylor", remedy="pass loss=...")
    if targets is None:
        return first.square().mean()
    return F.mse_loss(first, targets) if targets.is_floating_point() else F.cross_entropy(first, targets)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def unit_scores(space: Space, score: Any, calibration: Iterable[Any] | None, loss: Loss | None, seed: int) -> Scores:
    """Scores by name (``magnitude``, ``taylor``, ``random``), or checked ones from the user (family -> numbers)."""
    if isinstance(score, str):
        if score == "magnitude":
            return magnitude(space)
        if score == "random":
            return random(space, seed)
        if score == "taylor":
            return taylor(space, calibration or (), loss)
        raise unknown_name("score", score, ("magnitude", "taylor", "random"))
    if not isinstance(score, Mapping):
        raise UsageError(
            f"{score!r} is no score", place="score", remedy="give a name, or a dict from each family to its numbers"
        )
    for name in score:
        space.family(name)
    result: Scores = {}
    for family in space.families:
        try:
            given = np.asarray(score.get(family.name, ()), np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"scores must be numbers: {error}", place=f"family {family.name}") from None
        if given.shape != (family.size,):
            raise UsageError(f"expected {family.size} scores, got shape {given.shape}", place=f"family {family.name}")
        result[family.name] = given
    return result
