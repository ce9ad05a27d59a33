"""Activations that kernels apply to what they compute, and the bounds that they clamp it to."""

from __future__ import annotations

from math import inf, isnan

from coppice.kernels._errors import KernelError

#: Activations: the number that ``abi.h`` gives them, and the bounds that their result is clamped to.
ACTIVATIONS: dict[str, tuple[int, float, float]] = {
    "none": (0, -inf, inf),
    "relu": (0, 0.0, inf),
    "relu6": (0, 0.0, 6.0),
    "hardswish": (1, -inf, inf),
    "sigmoid": (2, -inf, inf),
    "silu": (3, -inf, inf),
    "gelu": (4, -inf, inf),
}

Activation = str | tuple[float, float]


def activation_of(activation: Activation) -> tuple[int, float, float]:
    """The number of an activation in ``abi.h`` and its bounds.

    Raises:
        KernelError: there is none of this name, or the bounds are no range.
    """
    if isinstance(activation, str):
        if activation in ACTIVATIONS:
            return ACTIVATIONS[activation]
        remedy = f"use one of {', '.join(ACTIVATIONS)}, or (lower, upper)"
        raise KernelError(f"there is no {activation!r}", place="activation", remedy=remedy)
    try:
        lower, upper = map(float, activation)
    except (TypeError, ValueError):
        fact = f"{activation!r} is neither a name nor (lower, upper)"
        raise KernelError(fact, place="activation", remedy='"none" for none') from None
    if isnan(lower) or isnan(upper) or lower > upper:
        fact = f"{lower} .. {upper} is not a range"
        raise KernelError(fact, place="activation", remedy="give the lower bound first")
    return 0, lower, upper
