"""An optimizer that is another optimizer, and more: whatever holds one may hold the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from coppice.core.errors import UsageError


class WrappedOptimizer(torch.optim.Optimizer):
    """Owns ``base`` and shares its ``param_groups`` and ``state``: schedulers and loops see one optimizer."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__([{"params": list(g["params"])} for g in base.param_groups], dict(base.defaults))
        self.base = base
        self._count = sum(len(g["params"]) for g in base.param_groups)

    def _parameters(self) -> list[torch.Tensor]:
        """All parameters of the base; `UsageError` where it was given more since it was wrapped."""
        parameters = [p for g in self.base.param_groups for p in g["params"]]
        if len(parameters) != self._count:
            raise _joined_late(type(self).__name__)
        return parameters

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "base"):
            raise _joined_late(f"{type(self).__name__}.add_param_group")
        super().add_param_group(param_group)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's: schedulers that change them change the base."""
        base = self.__dict__.get("base")
        return self.__dict__["_groups"] if base is None else base.param_groups  # type: ignore[no-any-return]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        base = self.__dict__.get("base")
        if base is None:
            self.__dict__["_groups"] = groups
        else:
            base.param_groups = groups

    @property
    def state(self) -> Any:
        """The base's."""
        base = self.__dict__.get("base")
        return self.__dict__["_state"] if base is None else base.state

    @state.setter
    def state(self, state: Any) -> None:
        base = self.__dict__.get("base")
        if base is None:
            self.__dict__["_state"] = state
        else:
            base.state = state


def check_base(base: object, place: str) -> None:
    """Raise `UsageError` where ``base`` is no optimizer (its class, its name)."""
    if not isinstance(base, torch.optim.Optimizer):
        raise UsageError(f"base is a {type(base).__name__}", place=place, remedy="pass an optimizer instance")


def evaluated(closure: Callable[[], float] | None) -> tuple[float | None, Callable[[], float] | None]:
    """The loss of ``closure``, and one that gives this loss when first called: gradients are looked at in between."""
    if closure is None:
        return None, None
    with torch.enable_grad():
        loss = closure()
    known = [loss]
    return loss, lambda: known.pop() if known else closure()


def _joined_late(place: str) -> UsageError:
    return UsageError(
        "parameters cannot join after the space was built",
        place=place,
        remedy="build the optimizer over all parameters, or train new ones with an optimizer of their own",
    )
