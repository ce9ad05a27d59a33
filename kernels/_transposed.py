"""The transpose of a weight, as the products that make the gradient of x from that of the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._buffers import buffer
from coppice.kernels._call import shaped
from coppice.kernels._errors import KernelError
from coppice.kernels._types import Array, widened
from coppice.kernels._window import Window

if TYPE_CHECKING:
    from coppice.kernels._weight import Weight

Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Part:
    """The product that makes every stride-th row and column of the gradient of x, from ``phase`` on.

    Attributes:
        weight: [channels, rows * taps], or of a plain product [cols, rows].
        order: which value of the flattened values of the weight before it was transposed each value is, or -1: zero.
        phase: the first row and column of x.
        shift: the row and column of dy that the first tap of the first place meets; negative: that much before it.
        window: how the product walks over dy, without padding; None: dy is a matrix.
    """

    weight: Weight
    order: Places
    phase: tuple[int, int] = (0, 0)
    shift: tuple[int, int] = (0, 0)
    window: Window | None = None


@dataclass(frozen=True, eq=False)
class Transposed:
    """The transpose of a weight, for :func:`input_gradient`; :meth:`Weight.transposed` makes one.

    A place of x meets only the taps of a convolution that are a multiple of the stride away from it. So for each of the
    stride's phases there is a convolution of dy by those taps alone, mirrored, step by step: the work is that of the
    forward pass whatever the stride.

    Attributes:
        rows, cols: of the weight that was transposed.
        values: the shape of its values.
        window: that of the convolution; None: a plain product.
        parts: one for each phase that has taps.
    """

    rows: int
    cols: int
    values: tuple[int, int]
    window: Window | None
    parts: tuple[Part, ...]

    def with_values(self, values: Any) -> Transposed:
        """The same for other values of the weight, float32 [entries, height]: what an optimizer made of them.

        Nothing is searched or sorted, values go to their places.

        Raises:
            KernelError: not float32, or another shape.
        """
        held = shaped("values", buffer("values", values, 2), self.values, "float32", "pass the values of the weight")
        parts = (replace(part, weight=part.weight.with_values(_taken(held.array, part.order))) for part in self.parts)
        return replace(self, parts=tuple(parts))


def transpose(weight: Weight, window: Window | None, height: int) -> Transposed:
    """What :meth:`Weight.transposed` returns."""
    held, values = weight.type, weight.values
    if weight.scales is not None:
        scales = np.zeros((weight.bands * weight.height,), np.float32)
        scales[: weight.rows] = weight.scales
        band, _ = weight.places()
        held, values = "float32", widened(values, held) * scales.reshape(-1, weight.height)[band]
    places = _values(weight)
    if window is None:
        parts = [_part(places[1], places[0], places[2], (weight.cols, weight.rows), weight, height)]
    else:
        parts = list(_phases(weight, places, window, height))
    parts = [replace(part, weight=replace(part.weight, type=held, values=_taken(values, part.order))) for part in parts]
    return Transposed(weight.rows, weight.cols, values.shape, window, tuple(parts))


def _values(weight: Weight) -> tuple[Places, Places, Places]:
    """(row, column, number) of every value inside of the matrix."""
    band, column = weight.places()
    row = (band[:, None] * weight.height + np.arange(weight.height)).ravel()
    inside = np.flatnonzero(row < weight.rows)
    return row[inside], column[inside // weight.height], inside


def _taken(values: Array, order: Places) -> Array:
    """Values by their numbers, zero where there is none."""
    if not values.size:
        return np.zeros(order.shape, values.dtype)
    taken: Array = values.ravel()[order]
    taken[order < 0] = 0
    return taken


def _part(
    row: Places, column: Places, number: Places, shape: tuple[int, int], source: Weight, height: int, **where: Any
) -> Part:
    """A weight [rows, cols] with value ``number`` of the source in each place, sparse or dense as that is."""
    from scipy import sparse

    cols = max(1, shape[1])
    if source.starts is None:
        pattern = type(source).dense(np.zeros(shape, np.float32))
    else:
        pattern = type(source).sparse(
            sparse.coo_array((np.ones(len(row), np.float32), (row, column)), shape), height=height
        )
    key = row * cols + column
    by = np.argsort(key)
    band, place = pattern.places()
    wanted = (band[:, None] * pattern.height + np.arange(pattern.height)) * cols + place[:, None]
    at = np.searchsorted(key[by], wanted)
    at[at == len(key)] = 0
    order = np.where(key[by][at] == wanted, number[by][at], -1) if len(key) else np.full(wanted.shape, -1)
    return Part(pattern, order, **where)


def _phases(weight: Weight, places: tuple[Places, Places, Places], window: Window, height: int) -> Any:
    """The part of each phase that has taps: some channels by the mirrored taps of all rows."""
    (high, wide), (sy, sx) = window.kernel, window.stride
    if weight.cols % (high * wide):
        fact = f"{weight.cols} columns are not channels of {high} x {wide} taps"
        raise KernelError(fact, place="window", remedy="pass the window of the convolution")
    row, column, number = places
    channel, tap = column // (high * wide), column % (high * wide)
    for y in range(sy):
        for x in range(sx):
            ky, kx = _taps(window, 0, y), _taps(window, 1, x)
            if not (ky.count and kx.count):
                continue
            # Which of the taps each one is, counted from the last; a tap of another phase is left out.
            down, across = ky.mirrored(tap // wide), kx.mirrored(tap % wide)
            own = (down >= 0) & (across >= 0)
            place = (row * ky.count + down) * kx.count + across
            shape = weight.cols // (high * wide), weight.rows * ky.count * kx.count
            step = Window((ky.count, kx.count), dilation=(ky.dilation, kx.dilation))
            yield _part(channel[own], place[own], number[own], shape, weight, height,
                        phase=(y, x), shift=(ky.shift, kx.shift), window=step)  # fmt: skip


@dataclass(frozen=True)
class _Taps:
    """The taps of a phase along one axis: ``first``, ``first + apart``, ...; they meet dy ``dilation`` apart."""

    first: int
    apart: int
    count: int
    dilation: int
    shift: int

    def mirrored(self, tap: Places) -> Places:
        """The number of each tap, the last being 0; negative for those of other phases."""
        steps = (tap - self.first) // self.apart
        return np.where((tap - self.first) % self.apart == 0, self.count - 1 - steps, -1)


def _taps(window: Window, axis: int, phase: int) -> _Taps:
    """Row i of x meets tap k where i + padding - k * dilation is a multiple of the stride, i being the phase and so on.

    The multiple is the row of dy: it falls by dilation / g from tap to tap, which are stride / g apart, g being what
    stride and dilation have in common.
    """
    stride, dilation = window.stride[axis], window.dilation[axis]
    common = gcd(stride, dilation)
    apart, start = stride // common, phase + window.padding[axis]
    met = [k for k in range(min(apart, window.kernel[axis])) if (start - k * dilation) % stride == 0]
    if not met:
        return _Taps(0, apart, 0, 1, 0)
    count = (window.kernel[axis] - 1 - met[0]) // apart + 1
    step = dilation // common
    return _Taps(met[0], apart, count, step, (start - met[0] * dilation) // stride - (count - 1) * step)
