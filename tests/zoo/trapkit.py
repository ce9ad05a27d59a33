"""Small frames for traps: one or two convolutions, the suspected operation, and the layer that reads it."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor, nn

from zoo.case import Case, Inputs, image, seeded

Op = Callable[[Tensor], Tensor]
Op2 = Callable[[Tensor, Tensor], Tensor]
Size = Callable[[int], int]
Verdict = Literal["expect", "may", "later", "expect_frozen"]
WIDTH = 8
SMALL_IMAGE = image(3, 8, 8)


class Between(nn.Module):
    """conv1 -> op -> conv2."""

    def __init__(self, op: Op, made: int, read: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, made, 3, padding=1)
        self.op = op
        self.conv2 = nn.Conv2d(read, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.op(self.conv1(x)))


class Two(nn.Module):
    """op(conv_a, conv_b) -> conv2."""

    def __init__(self, op: Op2, width: int, read: int) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(3, width, 3, padding=1)
        self.conv_b = nn.Conv2d(3, width, 1)
        self.op = op
        self.conv2 = nn.Conv2d(read, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.op(self.conv_a(x), self.conv_b(x)))


class Lift(nn.Module):
    """Makes a function a module, for tables that mix both."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def same(width: int) -> int:
    return width


def trap(
    name: str,
    family: str,
    verdict: Verdict,
    make: Callable[[int], nn.Module],
    names: tuple[str, ...],
    *,
    inputs: Inputs = SMALL_IMAGE,
    frozen: tuple[str, ...] = ("out.*",),
    also_expect: tuple[str, ...] = (),
    also_may: tuple[str, ...] = (),
    axes: Mapping[str, int] | None = None,
    note: str = "",
    resizable: bool = True,
) -> Case:
    """A trap whose suspected axes (of ``names``) have ``width`` units; ``make(width)`` builds it at any width."""
    fields: dict[str, tuple[str, ...]] = {"expect": also_expect, "expect_frozen": frozen, "later": (), "may": also_may}
    fields[verdict] = (*fields[verdict], *names)
    return Case(
        name=name,
        family=family,
        build=seeded(lambda: make(WIDTH)),
        inputs=inputs,
        expect=fields["expect"],
        expect_frozen=fields["expect_frozen"],
        later=fields["later"],
        may=fields["may"],
        axes=axes or {},
        note=note,
        resize=(lambda width: seeded(lambda: make(width))()) if resizable else None,
        width=WIDTH,
    )


def between(
    name: str,
    family: str,
    verdict: Verdict,
    op: Op | None = None,
    *,
    make: Callable[[int], nn.Module] | None = None,
    made: Size = same,
    read: Size = same,
    also: tuple[str, ...] = (),
    frozen: tuple[str, ...] = (),
    axes: Mapping[str, int] | None = None,
    note: str = "",
    resizable: bool = True,
) -> Case:
    """conv1 -> op -> conv2, where the op is a function or a module that ``make(width)`` builds."""

    def build(width: int) -> nn.Module:
        middle = make(width) if make is not None else op
        assert middle is not None
        return Between(middle, made(width), read(width))

    ends = ("conv2.*", *frozen)
    names = ("conv1.*", *also)
    return trap(name, family, verdict, build, names, frozen=ends, axes=axes, note=note, resizable=resizable)


def two(
    name: str, family: str, verdict: Verdict, op: Op2, *, read: Size = same, note: str = "", resizable: bool = True
) -> Case:
    """op(conv_a, conv_b) -> conv2."""

    def build(width: int) -> nn.Module:
        return Two(op, width, read(width))

    names = ("conv_a.*", "conv_b.*")
    return trap(name, family, verdict, build, names, frozen=("conv2.*",), note=note, resizable=resizable)
