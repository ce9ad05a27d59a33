"""`carry_over`: training goes on in the subnet, with the optimizer's state cut like its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from coppice.api.subnet import Subnet
from coppice.core.errors import UsageError
from coppice.core.tensors import all_tensors
from coppice.passes.train.transfer import PLACE, Build, Heir, check_schedulers, reattach, transfer, unwrapped


def carry_over(
    optimizer: Optimizer, subnet: Subnet, *, schedulers: Iterable[Any] = (), build: Build | None = None
) -> Optimizer:
    """An optimizer over ``subnet.module`` that goes on where ``optimizer``, which trained the full model, stands.

    It is of the base optimizer's class (what ``DHSPG`` and its like wrap), with the same groups in the same order:
    hyper-parameters, membership, and state cut like the parameters (momentum, both moments; step counts are copied).
    ``schedulers`` are attached to it in place, so that their next learning rate is the one that would have come. With
    removed units at zero, training goes on as it would have in the masked full model::

        subnet = coppice.extract(space, optimizer.config())
        optimizer = coppice.carry_over(optimizer, subnet, schedulers=[schedule])
        model = subnet.module.train()  # extract returns it in eval mode
        ...  # the same loop

    Parameters that are not the model's (a loss with weights of its own) stay in their groups as they are; parameters
    that the subnet no longer has leave theirs. Hooks registered on the optimizer stay with the old one. Where removal
    folded constants into a bias (``subnet.receipt["folded"]``), training goes on from the same function, but the big
    model would have trained the weights behind those constants too. A ``GraphModule``, and forwards listed in
    ``subnet.receipt["module"]["rewritten"]``, compute as in eval mode: no dropout, batch norms by running statistics.

    ``build`` makes the optimizer from the new groups, for classes whose arguments are not their defaults:
    ``build=lambda groups: MyOptimizer(groups, rate=0.1)``.

    Raises `UsageError` where ``optimizer`` trains none of the full model's parameters, a scheduler drives another
    optimizer, or the class cannot be called with its defaults; `UnsupportedError` for a loaded subnet, and for state
    that is not shaped like its parameter (LBFGS); nothing is changed then.
    """
    if not isinstance(optimizer, Optimizer) or not isinstance(subnet, Subnet):
        what = f"{type(optimizer).__name__} and {type(subnet).__name__}"
        raise UsageError(f"expected an optimizer and a Subnet, got {what}", place=PLACE)
    base, schedulers = unwrapped(optimizer), list(schedulers)
    heirs = _heirs(subnet)
    trained = [p for group in base.param_groups for p in group["params"]]
    if not any(p in heirs for p in trained):
        raise UsageError(
            f"it trains none of the parameters that the subnet was cut from ({len(heirs)} parameters)",
            place=PLACE,
            remedy="pass the optimizer that trained the model which was traced, and a subnet extracted from that model "
            "(not with weights=...)",
        )
    check_schedulers(schedulers, (optimizer, base))
    now = transfer(base, heirs, build)
    for scheduler in schedulers:
        reattach(scheduler, now)
    return now


def _heirs(subnet: Subnet) -> dict[Tensor, Heir | None]:
    """Every parameter of the full model and what took its place: None where the subnet lacks it."""
    origin = subnet.extracted(PLACE)
    graph = origin.space.graph
    own = dict(subnet.module.named_parameters(remove_duplicate=False))
    result: dict[Tensor, Heir | None] = {}
    for name, tensor in all_tensors(graph).items():
        if result.get(tensor) is None:
            masks = origin.extraction.kept.get(graph.canonical(name), ())
            stays = name in own and name not in origin.extraction.erased
            result[tensor] = Heir(name, own[name], masks) if stays else None
    return result
