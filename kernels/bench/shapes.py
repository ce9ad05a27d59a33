"""The layers of real models: ``shapes.csv`` as data."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import ceil

from coppice.kernels._errors import KernelError
from coppice.kernels._window import Window


@dataclass(frozen=True)
class Convolution:
    """How a convolution walks over its input, each as (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: int
    size: tuple[int, int]

    @property
    def out(self) -> tuple[int, int]:
        """Rows and columns of the result: those of the input over the stride, rounded up."""
        return ceil(self.size[0] / self.stride), ceil(self.size[1] / self.stride)

    @property
    def padding(self) -> tuple[int, int]:
        """The least number of zeros on either side that gives as many rows and columns."""
        vertical, horizontal = (
            max(0, ceil(((out - 1) * self.stride + kernel - size) / 2))
            for out, kernel, size in zip(self.out, self.kernel, self.size, strict=True)
        )
        return vertical, horizontal

    @property
    def window(self) -> Window | None:
        """For ``matmul``; None where the input is the matrix of columns itself."""
        if self.kernel == (1, 1) and self.stride == 1:
            return None
        return Window(self.kernel, (self.stride, self.stride), self.padding)


@dataclass(frozen=True)
class Shape:
    """A layer: weight [rows, cols] times activations [cols, pixels], ``count`` times in its model.

    Attributes:
        convolution: None for a linear layer, whose pixels are tokens; otherwise cols are channels * kernel, and pixels
            those of the result.
        sample: whether it stands for its kind where not all shapes are measured.
    """

    model: str
    layer: str
    rows: int
    cols: int
    pixels: int
    count: int = 1
    convolution: Convolution | None = None
    sample: bool = False

    @property
    def window(self) -> Window | None:
        """See :attr:`Convolution.window`; None for a linear layer."""
        return None if self.convolution is None else self.convolution.window

    @property
    def input(self) -> tuple[int, ...]:
        """Sizes of the activations: [cols, pixels], or [channels, height, width] where there is a window."""
        held = self.convolution
        if held is None or held.window is None:
            return self.cols, self.pixels
        return self.cols // (held.kernel[0] * held.kernel[1]), *held.size

    @property
    def text(self) -> str:
        """``256x2304x196``, and the window after it: ``256x2304x196:3x3s1``."""
        plain = f"{self.rows}x{self.cols}x{self.pixels}"
        held = self.convolution
        if held is None or held.window is None:
            return plain
        return f"{plain}:{held.kernel[0]}x{held.kernel[1]}s{held.stride}"


def load_shapes(models: Sequence[str] | None = None) -> list[Shape]:
    """The layers of ``shapes.csv``; ``models`` keeps those of some models.

    Raises:
        KernelError: a model is not in the file.
    """
    text = files("coppice.kernels").joinpath("shapes.csv").read_text(encoding="utf-8")
    shapes = [_shape(row) for row in csv.DictReader(text.splitlines())]
    known = dict.fromkeys(shape.model for shape in shapes)
    for model in models or ():
        if model not in known:
            raise KernelError(f"there is no {model!r}", place="models", remedy=f"use some of {', '.join(known)}")
    return [shape for shape in shapes if models is None or shape.model in models]


def _shape(row: dict[str, str]) -> Shape:
    convolution = None
    if row["kernel"]:
        convolution = Convolution(_pair(row["kernel"]), int(row["stride"]), _pair(row["size"]))
    rows, cols, pixels, count = (int(row[name]) for name in ("rows", "cols", "pixels", "count"))
    return Shape(row["model"], row["layer"], rows, cols, pixels, count, convolution, bool(row["sample"]))


def _pair(text: str) -> tuple[int, int]:
    """``3`` as (3, 3), ``10x4`` as (10, 4)."""
    first, _, second = text.partition("x")
    return int(first), int(second or first)


def parse_shape(text: str) -> Shape | None:
    """``64x64x196`` as a linear layer, ``64x32x56:k3s2`` as a convolution; None where it is neither.

    A convolution is written output channels x input channels x height and width of the input, kernel and stride.

    Raises:
        KernelError: a size is zero.
    """
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)(?::k(\d+)(?:s(\d+))?)?", text)
    if found is None:
        return None
    rows, cols, pixels, kernel, stride = (None if part is None else int(part) for part in found.groups())
    assert rows is not None and cols is not None and pixels is not None
    if 0 in (rows, cols, pixels, kernel, stride):
        remedy = "write rows x columns x pixels, as in 64x64x196, or a convolution, as in 64x32x56:k3s2"
        raise KernelError("a size is zero", place=text, remedy=remedy)
    if kernel is None:
        return Shape("given", text, rows, cols, pixels)
    convolution = Convolution((kernel, kernel), stride or 1, (pixels, pixels))
    height, width = convolution.out
    return Shape("given", text, rows, cols * kernel * kernel, height * width, 1, convolution)
