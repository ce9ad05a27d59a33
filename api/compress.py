"""`compress`: trace, build the space, choose, extract and prove, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from coppice.api.extract import extract
from coppice.api.recalibrate import recalibrate
from coppice.api.reform import reform as fitted
from coppice.api.subnet import Subnet
from coppice.core.budget import BudgetLike
from coppice.core.errors import UsageError
from coppice.frontends.torch import trace
from coppice.passes.compress.reform import Progress
from coppice.passes.prune.one_shot import prune
from coppice.passes.prune.scores import Loss, listed
from coppice.passes.space.build import Bound, Ignore, build_space


def compress(
    model: nn.Module,
    example_inputs: Any,
    *,
    budget: BudgetLike,
    ignore: Ignore = (),
    round_to: int = 1,
    bounds: Mapping[str, Bound] | None = None,
    residual: str = "exact",
    score: str | Mapping[str, Any] = "magnitude",
    calibration: Iterable[Any] | None = None,
    loss: Loss | None = None,
    reform: bool = False,
    seed: int = 0,
    progress: Progress = lambda _, __: None,
) -> Subnet:
    """The subnet of ``model`` within ``budget``, chosen in one shot and validated.

    With ``calibration`` batches (inputs, or (inputs, targets)), batch-norm statistics are measured again after the cut;
    the ``taylor`` score needs them too. With ``reform``, weights behind the cut are fitted on them to the full
    model as well, which makes up for much of what a one-shot cut costs. The arguments are those of `trace`,
    `build_space`, `prune`, `recalibrate` and `reform`, and so are the errors.
    """
    data = None if calibration is None else list(listed(calibration))
    if reform and not data:
        raise UsageError("reform=True needs data", place="compress", remedy="pass calibration=[inputs, ...]")
    graph = trace(model, example_inputs)
    space = build_space(graph, ignore=ignore, round_to=round_to, bounds=bounds, residual=residual)
    subnet = extract(space, prune(space, budget, score, data, loss=loss, seed=seed), seed=seed)
    if reform and data:
        return fitted(subnet, data, progress=progress)
    return subnet if not data else recalibrate(subnet, data)
