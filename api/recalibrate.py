"""`recalibrate`: give a subnet batch-norm statistics of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from coppice.api.subnet import Subnet
from coppice.core.errors import EquivalenceError
from coppice.passes.extract.check import TOLERANCE, compare
from coppice.passes.prune.scores import batches
from coppice.passes.train.recalibrate import statistics


def recalibrate(subnet: Subnet, calibration: Iterable[Any]) -> Subnet:
    """Measure the batch-norm statistics of ``subnet`` again on ``calibration`` batches, in place; returns it.

    The reference follows, and the two are compared again.
    """
    origin = subnet.extracted("recalibrate")
    measured = statistics(subnet.graph, subnet.tensors(), batches(origin.space, calibration))
    write(subnet, measured)
    subnet.receipt["recalibrated"] = sorted(measured)
    if measured:
        prove(subnet, "recalibration")
    return subnet


def write(subnet: Subnet, values: Mapping[str, torch.Tensor]) -> None:
    """Put ``values`` into the module's tensors of these names; the graph takes all of the module's."""
    tensors = subnet.tensors()
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)
        for name, tensor in tensors.items():
            subnet.graph.tensors[name].copy_(tensor)


def prove(subnet: Subnet, after: str) -> None:
    """Compare the subnet with its reference again, and put the error into the receipt, if it was validated before."""
    if not subnet.receipt["validated"]:
        return
    origin = subnet.extracted(after)
    agreement = compare(origin.reference, subnet.masked_tensors(exact=True), subnet.graph)
    subnet.receipt["equivalence"]["error"] = agreement.error
    if not agreement.error <= TOLERANCE:
        raise EquivalenceError(
            f"after {after} the subnet differs by {agreement.error:.3g}",
            error=agreement.error,
            place=subnet.graph.name,
            remedy="please report this as a bug",
        )
