"""`recalibrate`: give a subnet batch-norm statistics of its own."""

from __future__ import annotations

from collections.abc import Iterable
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
    tensors = subnet.tensors()
    measured = statistics(subnet.graph, tensors, batches(origin.space, calibration))
    with torch.no_grad():
        for name, values in measured.items():
            tensors[name].copy_(values)
        for name, tensor in tensors.items():
            subnet.graph.tensors[name].copy_(tensor)
    subnet.receipt["recalibrated"] = sorted(measured)
    if measured and subnet.receipt["validated"]:
        masked = subnet.masked_tensors(exact=True)
        agreement = compare(origin.reference, masked, subnet.graph)
        subnet.receipt["equivalence"]["error"] = agreement.error
        if not agreement.error <= TOLERANCE:
            raise EquivalenceError(
                f"after recalibration the subnet differs by {agreement.error:.3g}",
                error=agreement.error,
                place=subnet.graph.name,
                remedy="please report this as a bug",
            )
    return subnet
