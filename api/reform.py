"""`reform`: after a one-shot cut, let what stays make up for what left, by least squares on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from coppice.api.recalibrate import prove, write
from coppice.api.subnet import Subnet
from coppice.core.errors import UnsupportedError
from coppice.core.graph import Graph
from coppice.core.tensors import refresh
from coppice.passes.compress.reform import Batch, Progress
from coppice.passes.compress.reform import reform as fitted
from coppice.passes.prune.scores import batches
from coppice.passes.train.recalibrate import statistics


def reform(subnet: Subnet, calibration: Iterable[Any], *, progress: Progress = lambda _, __: None) -> Subnet:
    """Fit the weights behind the cut to the full model on ``calibration`` batches, in place; returns the subnet.

    Every linear layer and convolution behind a cut unit or an erased segment gets the weights and bias that bring its
    result nearest to the full model's in the mean square (W' = W C[:, K] (C_KK + ridge)^-1, C = X X^T), layer after
    layer, from inputs that are reformed already. Batch-norm statistics are measured again at the end, unless the data
    are too few, or too unlike the training data, for that: where it would change the full model more than the subnet
    differs from it. The ridge is chosen for each layer on samples that were left out of the fit, so a weight stays
    where the data are too few to do better. Batches are inputs, or (inputs, targets); they are read once for every
    layer, and so held in memory. Some hundred samples will do for small models.

    This makes new weights, on purpose: the subnet no longer equals the full model masked with the weights it was cut
    with. It equals the one with its present weights, as after fine-tuning: `Subnet.reference` follows, and the two are
    compared again. ``receipt["reformed"]`` holds the error of the cut itself (``cut_error``); what the output lacks of
    the full model's as a share of its variance on the calibration data (``output``); the same for the result of each
    layer, on samples left out of the fit (``weights``); and which weights were left alone, and why (``left``).

    ``progress`` is called with the layer that comes next and the part that is done.

    Raises `UsageError` where there is no batch or inputs are not finite, `UnsupportedError` for a loaded subnet or one
    on meta tensors; nothing is changed then.
    """
    origin = subnet.extracted("reform")
    if subnet.graph.is_meta:
        raise UnsupportedError("it is on meta tensors, which hold no data", place="reform")
    read = list(batches(origin.space, calibration))
    full = origin.space.graph
    refresh(full)
    found = fitted(origin.space, origin.config, origin.extraction, subnet.tensors(), read, progress)
    before = _lacking(full, subnet.graph, subnet.tensors(), read)
    proof = subnet.receipt["equivalence"]
    cut_error = subnet.receipt.get("reformed", {}).get("cut_error", proof and proof["error"])
    write(subnet, found.tensors)
    _recalibrate(subnet, read)
    after = _lacking(full, subnet.graph, subnet.tensors(), read)
    prove(subnet, "reformation")
    subnet.receipt["reformed"] = {
        "weights": {name: {"before": fit.before, "after": fit.after} for name, fit in found.fits.items()},
        "left": found.left,
        "output": {"before": before, "after": after},
        "cut_error": cut_error,
    }
    return subnet


def _recalibrate(subnet: Subnet, read: Sequence[Batch]) -> None:
    """Measure batch-norm statistics again, unless that would move the full model further than the subnet is from it.

    Its statistics are then not those of these data (too few, or of another kind), and the subnet's should not be.
    """
    full = subnet.extracted("reform").space.graph
    measured = statistics(full, full.tensors, read)
    moved = _lacking(full, full, {**full.tensors, **measured}, read) if measured else 0.0
    names: list[str] = []
    if measured and moved <= _lacking(full, subnet.graph, subnet.tensors(), read):
        own = statistics(subnet.graph, subnet.tensors(), read)
        write(subnet, own)
        names = sorted(own)
    subnet.receipt["recalibrated"] = names


def _lacking(full: Graph, small: Graph, tensors: Mapping[str, Tensor], read: Sequence[Batch]) -> float:
    """The mean square of what the outputs of ``small`` lack of those of ``full``, as a share of their variance."""
    lacks, total, square, count = 0.0, 0.0, 0.0, 0
    with torch.no_grad():
        for args, kwargs, _ in read:
            wanted, given = full.run(*args, **kwargs), small.run(*args, tensors=tensors, **kwargs)
            for y, found in zip(_floating(wanted), _floating(given), strict=True):
                y = y.double()
                lacks += float((y - found.double()).square().sum())
                total, square, count = total + float(y.sum()), square + float(y.square().sum()), count + y.numel()
    return lacks / max(square - total**2 / max(count, 1), 1e-30)


def _floating(result: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]
