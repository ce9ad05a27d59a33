"""The weights that kernels take: the layouts of ``coppice_weight`` in ``abi.h``."""

from __future__ import annotations

import os
from copy import copy
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._buffers import buffer
from coppice.kernels._call import shaped
from coppice.kernels._code import Code, compile_code
from coppice.kernels._convert import triplets
from coppice.kernels._errors import KernelError
from coppice.kernels._format import pack, unpack
from coppice.kernels._types import TYPES, Array, narrowed, widened

if TYPE_CHECKING:
    from coppice.kernels._transposed import Transposed
    from coppice.kernels._window import Window

#: Columns are stored in 16 bits, relative to their slab.
SLAB_MAX = 1 << 16
_SIZE_MAX = (1 << 31) - 1

#: Rows that a band may have; 1 is for sparse weights alone.
HEIGHTS = (1, 4, 8, 16)

Type = Literal["float32", "float16", "bfloat16", "int8"]


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix [rows, cols] of weights, immutable; build one with :meth:`sparse` or :meth:`dense`.

    Rows are taken ``height`` at a time as bands, columns are cut into slabs of ``slab`` columns (the last may be
    narrower; there is always one). An entry is one column of a band, ``height`` values. Band b of slab s has the
    entries ``starts[s * bands + b]`` up to ``starts[s * bands + b + 1]``; without ``starts`` and ``columns`` the weight
    is dense and every column of every band has an entry. A value may be zero; what has no entry takes no part in a
    product.

    Attributes:
        rows, cols: 0 .. 2^31 - 1.
        slab: 1 .. 65536 columns; ``slab >= cols`` makes one slab.
        height: 1 (CSR), 4, 8 or 16 (blocks of so many rows by one column); a dense weight has no 1.
        type: of the values; bfloat16 is held as its bits, in uint16.
        values: [entries, height].
        starts: uint32 [slabs * bands + 1], or None.
        columns: uint16 [entries], relative to the slab, strictly rising within a band of a slab; or None.
        scales: float32 [rows], by which the values of a row are multiplied; or None.
        code: what :meth:`compiled` made; or None.

    Raises:
        KernelError: the arrays contradict each other or the above. They are checked whole, so untrusted ones may come.
    """

    rows: int
    cols: int
    slab: int
    height: int
    type: Type
    values: Array
    starts: NDArray[np.uint32] | None = None
    columns: NDArray[np.uint16] | None = None
    scales: NDArray[np.float32] | None = None
    code: Code | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("rows", 0, _SIZE_MAX), ("cols", 0, _SIZE_MAX), ("slab", 1, SLAB_MAX)):
            size = getattr(self, name)
            if not least <= size <= most:
                raise KernelError(
                    f"{size} is not in {least} .. {most}", place=f"Weight.{name}", remedy="check the source"
                )
        heights = HEIGHTS[1:] if self.starts is None else HEIGHTS
        if self.height not in heights or self.type not in TYPES:
            fact = f"height {self.height} of {self.type}: there is {heights} of {', '.join(TYPES)}"
            raise KernelError(fact, place="Weight.height", remedy=_REMEDY)
        self._freeze("values", TYPES[self.type], (None, self.height))
        if (self.starts is None) != (self.columns is None):
            raise KernelError("it comes without the other", place="Weight.starts and Weight.columns", remedy=_REMEDY)
        if self.starts is not None:
            self._freeze("starts", np.uint32, (self.slabs * self.bands + 1,))
            self._freeze("columns", np.uint16, (len(self.values),))
        if self.scales is not None:
            self._freeze("scales", np.float32, (self.rows,))
        fault = self._fault()
        if fault:
            raise KernelError(fault[1], place=f"Weight.{fault[0]}", remedy=_REMEDY)

    def _freeze(self, name: str, dtype: Any, shape: tuple[int | None, ...]) -> None:
        """Put a copy in its place, so that nobody else can change what is checked."""
        array = np.array(getattr(self, name), order="C")
        fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
        if array.dtype != dtype or not fits:
            wanted = ", ".join("n" if n is None else str(n) for n in shape)
            fact = f"expected {np.dtype(dtype)} [{wanted}], got {array.dtype} {list(array.shape)}"
            raise KernelError(fact, place=f"Weight.{name}", remedy=_REMEDY)
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    def _fault(self) -> tuple[str, str] | None:
        """What ``coppice_weight_validate`` checks: (field, fact) or None."""
        if self.starts is None or self.columns is None:
            wanted = self.bands * self.cols
            return (
                None if self.entries == wanted else ("values", f"{self.entries} entries, a dense weight has {wanted}")
            )
        if self.starts[0] != 0 or self.starts[-1] != self.entries:
            return "starts", f"they run from {self.starts[0]} to {self.starts[-1]}, not from 0 to {self.entries}"
        if np.any(self.starts[1:] < self.starts[:-1]):
            return "starts", f"they fall after position {int(np.argmax(self.starts[1:] < self.starts[:-1]))}"
        owner = np.repeat(np.arange(self.slabs * self.bands), np.diff(self.starts))
        width = np.minimum(self.slab, self.cols - owner // max(self.bands, 1) * self.slab)
        if np.any(self.columns >= width):
            return "columns", f"entry {int(np.argmax(self.columns >= width))} lies outside its slab"
        repeats = (owner[1:] == owner[:-1]) & (self.columns[1:] <= self.columns[:-1])
        if np.any(repeats):
            return "columns", f"entry {int(np.argmax(repeats)) + 1} does not lie after the one before it in its band"
        return None

    @property
    def slabs(self) -> int:
        """Number of slabs, at least 1."""
        return max(1, ceil(self.cols / self.slab))

    @property
    def bands(self) -> int:
        """Number of bands."""
        return ceil(self.rows / self.height)

    @property
    def entries(self) -> int:
        """Number of stored blocks of ``height`` values."""
        return len(self.values)

    @property
    def density(self) -> float:
        """Stored values as a fraction of bands * height * cols; 0 for an empty matrix."""
        return self.entries / (self.bands * self.cols) if self.rows and self.cols else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in (self.values, self.starts, self.columns, self.scales) if array is not None)

    @classmethod
    def sparse(
        cls,
        matrix: Any,
        *,
        height: int = 1,
        type: Type = "float32",  # noqa: A002 (the name of the field)
        slab: int | None = None,
        pixels: int | None = None,
    ) -> Weight:
        """A matrix with entries where it is not zero: where a band has a non-zero value, it has an entry.

        Args:
            matrix: float32 [rows, cols]: a dense numpy array or torch CPU tensor, a torch tensor of layout sparse_csr
                or sparse_bsr, or a scipy sparse matrix (explicit zeros stay entries, duplicates are added up).
            height: rows of a band: 1, 4, 8 or 16.
            type: of the values: rounded to the nearest, ties to even; int8 has a scale for each row, the largest
                magnitude over 127.
            slab: columns per slab, 1 .. 65536; None: what runs fast at this density.
            pixels: how many the products will have, where it is known; it only bears on the choice of slab.

        Raises:
            KernelError: not two-dimensional, not float32, not on the CPU, or an argument out of range.
        """
        rows, cols, row, column, value = triplets(matrix)
        if height not in HEIGHTS:
            raise KernelError(f"{height} is not one of {HEIGHTS}", place="height", remedy="1 is CSR, 4 is a good block")
        bands = ceil(rows / height)
        key = row // height * np.int64(cols) + column if rows * cols else row
        places, which = np.unique(key, return_inverse=True)
        if slab is None:
            density = len(places) / (bands * cols) if bands and cols else 0.0
            slab = fast_slab(cols, density, pixels, height, type)
        if not 1 <= slab <= SLAB_MAX:
            raise KernelError(f"{slab} is not in 1 .. {SLAB_MAX}", place="slab", remedy="leave it out")
        if len(places) > np.iinfo(np.uint32).max:
            raise KernelError("2^32 entries or more", place="matrix", remedy="split the matrix by rows")
        values = np.zeros((len(places), height), np.float32)
        values[which, row % height] = value
        band, place = places // max(cols, 1), places % max(cols, 1)
        order = np.lexsort((place, band, place // slab))
        band, place, values = band[order], place[order], values[order]
        counts = np.bincount(place // slab * bands + band, minlength=max(1, ceil(cols / slab)) * bands)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]).astype(np.uint32)
        stored, scales = _stored(values, np.repeat(band[:, None], height, 1) * height + np.arange(height), rows, type)
        return cls(rows, cols, slab, height, type, stored, starts, (place % slab).astype(np.uint16), scales)

    @classmethod
    def dense(
        cls,
        matrix: Any,
        *,
        height: int = 8,
        type: Type = "float32",  # noqa: A002
        slab: int | None = None,
    ) -> Weight:
        """A matrix with all its values, for the kernels of dense products; arguments as of :meth:`sparse`."""
        rows, cols, row, column, value = triplets(matrix)
        if height not in HEIGHTS[1:]:
            raise KernelError(f"{height} is not one of {HEIGHTS[1:]}", place="height", remedy="leave it out")
        bands = ceil(rows / height)
        slab = fast_slab(cols, 1.0, None, height) if slab is None else slab
        whole = np.zeros((bands * height, cols), np.float32)
        whole[row, column] = value
        blocks = whole.reshape(bands, height, cols).transpose(0, 2, 1)  # [bands, cols, height]
        parts = [blocks[:, first : first + slab].reshape(-1, height) for first in range(0, max(cols, 1), slab)]
        owner = np.arange(bands * height).reshape(bands, 1, height)
        owners = [np.broadcast_to(owner, (bands, min(slab, cols - first), height)).reshape(-1, height)
                  for first in range(0, cols, slab)]  # fmt: skip
        rows_of = np.concatenate(owners) if owners else np.zeros((0, height), np.int64)
        stored, scales = _stored(np.concatenate(parts), rows_of, rows, type)
        return cls(rows, cols, slab, height, type, stored, scales=scales)

    def compiled(self, cache: str | os.PathLike[str] | None = None) -> Weight:
        """The same weight with straight-line machine code, which AVX-512 then runs in place of the loops.

        Several times faster than the loops for small layers with many pixels; slower once the code, about 11 bytes an
        entry, leaves the second-level cache or runs over few pixels. Without AVX-512 the code is not looked at.

        Args:
            cache: a folder that keeps code by the content of the weight; None: compiled anew, in milliseconds.

        Raises:
            KernelError: the weight is not sparse of height 1, the library has no code for this machine, or the system
                lets no new code run.
            KernelsUnavailable: there is no C library.
        """
        return replace(self, code=compile_code(self, None if cache is None else Path(cache)))

    def with_values(self, values: Any) -> Weight:
        """The same entries with other values, which are rounded to the weight's type; without code.

        The places are shared and not looked at again, so this costs a copy: it is for every step of an optimizer.

        Args:
            values: float32 [entries, height], as :func:`weight_gradient` has its result.

        Raises:
            KernelError: not float32, or another shape; of int8 a NaN or an infinity.
        """
        held = shaped("values", buffer("values", values, 2), self.values.shape, "float32", "pass one for each value")
        rows_of = np.zeros(0, np.int64)
        if self.type == "int8":
            rows_of = self.places()[0][:, None] * self.height + np.arange(self.height)
        stored, scales = _stored(held.array, rows_of, self.rows, self.type)
        other = copy(self)
        object.__setattr__(other, "code", None)
        for name, array in (("values", np.array(stored, order="C")), ("scales", scales)):
            if array is not None:
                array.setflags(write=False)
            object.__setattr__(other, name, array)
        return other

    def transposed(self, window: Window | None = None, *, height: int = 1) -> Transposed:
        """What :func:`input_gradient` multiplies by, made once for a weight; ``with_values`` of it follows a training.

        It is of the weight's type, but what has scales, int8 that is, becomes float32: the scales are multiplied in.

        Args:
            window: that of the convolution, whose taps it mirrors; None: a plain product.
            height: of the bands of a sparse weight, filled with zeros: its blocks lie across these.

        Raises:
            KernelError: the columns of the weight are not those of the window, or there is no such height.
        """
        from coppice.kernels._transposed import transpose

        return transpose(self, window, height)

    def to_bytes(self) -> bytes:
        """The weight as the content of a safetensors file, for :meth:`from_bytes`; code is left out."""
        return pack(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Weight:
        """The weight that :meth:`to_bytes` wrote; ``data`` may come from anyone.

        Raises:
            KernelError: it is another file, of another version, or its arrays contradict each other.
        """
        return cls(**unpack(data))

    def to_dense(self) -> NDArray[np.float32]:
        """The matrix with its zeros, float32 [rows, cols]: what the kernels multiply by, rounding included."""
        dense = np.zeros((self.bands * self.height, self.cols), np.float32)
        band, column = self.places()
        values = widened(self.values, self.type)
        for row in range(self.height):
            dense[band * self.height + row, column] = values[:, row]
        dense = dense[: self.rows]
        return dense if self.scales is None else dense * self.scales[:, None]

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(band, column) of every entry, in order."""
        if not self.entries:  # nor rows or columns, perhaps, but two thousand million of the other
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        lists = self.slabs * self.bands
        if self.starts is None or self.columns is None:
            widths = [min(self.slab, self.cols - first) for first in range(0, self.cols, self.slab)]
            column = [np.tile(np.arange(width) + i * self.slab, self.bands) for i, width in enumerate(widths)]
            band = [np.repeat(np.arange(self.bands), width) for width in widths]
            return np.concatenate(band), np.concatenate(column)
        owner = np.repeat(np.arange(lists), np.diff(self.starts))
        bands = max(self.bands, 1)
        return owner % bands, owner // bands * self.slab + self.columns

    def __repr__(self) -> str:
        kind = "dense" if self.starts is None else f"{self.entries} entries, density {self.density:.3f}"
        return f"Weight({self.rows} x {self.cols} {self.type}, height {self.height}, {kind}, slab {self.slab})"


_REMEDY = "build the weight with Weight.sparse(matrix) or Weight.dense(matrix)"


def _stored(
    values: NDArray[np.float32], rows_of: NDArray[np.int64], rows: int, kind: Type
) -> tuple[Array, NDArray[np.float32] | None]:
    """Values [entries, height] as type ``kind``, and scales. ``rows_of`` says which row each belongs to."""
    if kind not in TYPES:
        raise KernelError(f"there is no {kind!r}", place="type", remedy=f"use one of {', '.join(TYPES)}")
    if kind != "int8":
        return narrowed(values, kind), None
    if not np.isfinite(values).all():
        raise KernelError("int8 holds no NaN and no infinity", place="matrix", remedy="take float16 or mend the values")
    largest = np.zeros(int(rows_of.max(initial=-1)) + 1 if rows_of.size else rows, np.float32)
    np.maximum.at(largest, rows_of.ravel(), np.abs(values).ravel())
    largest = np.concatenate([largest, np.zeros(max(0, rows - len(largest)), np.float32)])
    scales = np.where(largest > 0, largest / np.float32(127), 1).astype(np.float32)
    stored = np.rint(values / scales[rows_of]).astype(np.int8) if values.size else values.astype(np.int8)
    return stored, scales[:rows]


def fast_slab(cols: int, density: float, pixels: int | None = None, height: int = 1, kind: Type = "float32") -> int:
    """Columns per slab that suit the vector kernels, slabs being equally wide.

    Two forces, measured in docs/kernels.md: 192 columns x 80 pixels (or as much in another shape, where the pixels are
    known and fewer) are about what the first-level cache serves with help from the second, 128 where each is used
    often; below 13 entries per band of a slab, beginning and ending a band costs more than it saves. Bands of several
    rows use what they load as many times, so the second-level cache is near enough: 1024 columns. Where arithmetic in
    16 bits is allowed, x takes half as much, and where it is not, slabs twice as wide cost 3 %. A single pixel needs no
    slabs.
    """
    if pixels == 1:
        return min(SLAB_MAX, max(1, cols))
    panel = 80 if pixels is None else max(16, min(80, ceil(pixels / 16) * 16))
    near = 1024 if height > 1 else 128 if density > 0.3 else 192
    if kind in ("float16", "bfloat16") and height == 1:
        near *= 2
    widest = max(near * 80 / panel, 13 / max(density, 1e-9))
    return min(SLAB_MAX, max(1, ceil(cols / max(1, ceil(cols / widest)))))
