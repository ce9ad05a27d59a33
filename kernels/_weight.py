"""The weights that kernels take: the layouts of ``coppice_weight`` in ``abi.h``."""

from __future__ import annotations

import os
from copy import copy
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from coppice.kernels import _bands, _bitmask, _n_of_m, _sell
from coppice.kernels._buffers import buffer
from coppice.kernels._call import shaped
from coppice.kernels._code import Code, compile_code
from coppice.kernels._convert import Triplets, triplets
from coppice.kernels._errors import KernelError
from coppice.kernels._format import ARRAYS, pack, unpack
from coppice.kernels._layout import Layout, stored
from coppice.kernels._types import Array, widened

if TYPE_CHECKING:
    from coppice.kernels._transposed import Transposed
    from coppice.kernels._window import Window

_SIZE_MAX = (1 << 31) - 1

Type = Literal["float32", "float16", "bfloat16", "int8"]

#: In the order of coppice_layout in ``abi.h``.
LAYOUTS: dict[str, Layout] = {
    "dense": _bands.DENSE,
    "sparse": _bands.SPARSE,
    "bitmask": _bitmask.BITMASK,
    "n_of_m": _n_of_m.N_OF_M,
    "sell": _sell.SELL,
}


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix [rows, cols] of weights, immutable; build one with a constructor named after its layout.

    Dense and sparse: rows are taken ``height`` at a time as bands, columns are cut into slabs of ``slab`` columns (the
    last may be narrower; there is always one). An entry is one column of a band, ``height`` values. Band b of slab s
    has the entries ``starts[s * bands + b]`` up to ``starts[s * bands + b + 1]``; without ``starts`` and ``columns``
    the weight is dense and every column of every band has an entry. A value may be zero; what has no entry takes no
    part in a product.

    Bitmask, N of M and SELL are for one to four pixels; any number of pixels may be multiplied. ``abi.h`` describes
    their arrays; those of other layouts are None.

    Attributes:
        rows, cols: 0 .. 2^31 - 1; cols of SELL up to 2^22.
        slab: 1 .. 65536 columns; ``slab >= cols`` makes one slab; 0 where the layout has no slabs.
        height: 1 (CSR), 4, 8 or 16 (blocks of so many rows by one column); a dense weight has no 1, a bitmask has 1,
            N of M and SELL have 16.
        type: of the values; bfloat16 is held as its bits, in uint16. SELL is int8.
        values: [entries, height]; of SELL [entries, 16, 4].
        starts: uint32 [slabs * bands + 1], or None.
        columns: uint16 [entries], relative to the slab, strictly rising within a band of a slab; or None.
        scales: float32 [rows], by which the values of a row are multiplied; or None.
        code: what :meth:`compiled` made; or None.
        kept, group: N and M; 0 in other layouts.
        masks: uint64 [rows, cols over 64, rounded up].
        positions: uint32 [bands, entries of a row over 8, rounded up, 16].
        offsets: uint8 [entries, 16, 4].
        lanes: uint8 [rows], or None: rows in order.

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
    kept: int = 0
    group: int = 0
    masks: NDArray[np.uint64] | None = None
    positions: NDArray[np.uint32] | None = None
    offsets: NDArray[np.uint8] | None = None
    lanes: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            if not 0 <= getattr(self, name) <= _SIZE_MAX:
                _refuse(name, f"{getattr(self, name)} is not in 0 .. {_SIZE_MAX}")
        layout = LAYOUTS[self.layout]
        if self.height not in layout.heights or self.type not in layout.types:
            fact = f"height {self.height} of {self.type}: there is {layout.heights} of {', '.join(layout.types)}"
            _refuse("height", fact)
        fault = layout.sizes(self)
        if fault:
            _refuse(*fault)
        if (self.starts is None) != (self.columns is None) and self.layout in ("dense", "sparse"):
            _refuse("starts and Weight.columns", "it comes without the other")
        object.__setattr__(self, "values", np.atleast_1d(self.values))
        wanted = {**layout.arrays(self), "scales": (np.float32, (self.rows,))}
        for name in ARRAYS:
            held = getattr(self, name)
            if name not in wanted and held is not None:
                _refuse(name, f"a weight of layout {self.layout} has none")
            if name in wanted and not (held is None and name in ("scales", *layout.optional)):
                self._freeze(name, *wanted[name])
        fault = layout.fault(self)
        if fault:
            _refuse(*fault)

    def _freeze(self, name: str, dtype: Any, shape: tuple[int | None, ...]) -> None:
        """Put a copy in its place, on a cache line, so that nobody else can change what is checked."""
        array = np.asarray(getattr(self, name))
        fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
        if array.dtype != dtype or not fits:
            wanted = ", ".join("n" if n is None else str(n) for n in shape)
            _refuse(name, f"expected {np.dtype(dtype)} [{wanted}], got {array.dtype} {list(array.shape)}")
        room = np.empty(array.nbytes + 64, np.uint8)
        room = room[-room.ctypes.data % 64 :][: array.nbytes]
        copy = room.view(dtype).reshape(array.shape)
        copy[...] = array
        copy.setflags(write=False)
        object.__setattr__(self, name, copy)

    @property
    def layout(self) -> str:
        """A name from ``LAYOUTS``; the arrays that are there tell."""
        if self.masks is not None:
            return "bitmask"
        if self.positions is not None:
            return "n_of_m"
        if self.offsets is not None:
            return "sell"
        return "dense" if self.starts is None else "sparse"

    @property
    def slabs(self) -> int:
        """Number of slabs, at least 1."""
        return max(1, ceil(self.cols / self.slab)) if self.slab else 1

    @property
    def bands(self) -> int:
        """Number of bands."""
        return ceil(self.rows / self.height)

    @property
    def entries(self) -> int:
        """Number of stored blocks of ``height`` values; of SELL, of four times as many."""
        return len(self.values)

    @property
    def density(self) -> float:
        """Stored values as a fraction of bands * height * cols, those that fill up SELL among them; 0 for an empty
        matrix."""
        return self.values.size / (self.bands * self.height * self.cols) if self.rows and self.cols else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for name in ARRAYS if (array := getattr(self, name)) is not None)

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
                or sparse_bsr, or a scipy sparse matrix (explicit zeros stay entries, duplicates are added up); or
                another Weight, of any layout, whose entries and, from int8 to int8, scales are taken over.
            height: rows of a band: 1, 4, 8 or 16.
            type: of the values: rounded to the nearest, ties to even; int8 has a scale for each row, the largest
                magnitude over 127.
            slab: columns per slab, 1 .. 65536; None: what runs fast at this density.
            pixels: how many the products will have, where it is known; it only bears on the choice of slab.

        Raises:
            KernelError: not two-dimensional, not float32, not on the CPU, or an argument out of range.
        """
        return cls(**_bands.sparse(_source(matrix), height, type, slab, pixels, _scales_of(matrix, type)))

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
        return cls(**_bands.dense(_source(matrix), height, type, slab, _scales_of(matrix, type)))

    @classmethod
    def bitmask(cls, matrix: Any, *, type: Type = "float32") -> Weight:  # noqa: A002
        """A matrix as a bit for each place and the values of the set ones, for one to four pixels and up to about 80 %
        zeros; with int8 and ``arithmetic="int8"`` for more. Arguments as of :meth:`sparse`."""
        return cls(**_bitmask.bitmask(_source(matrix), type, _scales_of(matrix, type)))

    @classmethod
    def sell(cls, matrix: Any) -> Weight:
        """A matrix of int8 as sliced ELLPACK, for one to four pixels, many zeros and ``arithmetic="int8"``.

        Args:
            matrix: as of :meth:`sparse`, of up to 2^22 columns. What is rounded to zero, and explicit zeros, are no
                entries.

        Raises:
            KernelError: as :meth:`sparse`.
        """
        return cls(**_sell.sell(_source(matrix), _scales_of(matrix, "int8")))

    @classmethod
    def n_of_m(cls, matrix: Any, n: int, m: int, *, type: Type = "float32") -> Weight:  # noqa: A002
        """A matrix with at most ``n`` values in each group of ``m`` columns of a row, for one to four pixels.

        Such a matrix comes of keeping the n largest magnitudes of every group and training on with the others held at
        zero (Zhou et al. 2021, Learning N:M fine-grained structured sparse neural networks from scratch, arXiv
        2102.04010)::

            groups = weight.reshape(rows, cols // m, m)
            kept = groups.abs().topk(n, dim=2).indices
            weight = torch.zeros_like(groups).scatter(2, kept, groups.gather(2, kept)).reshape(rows, cols)

        Args:
            matrix: as of :meth:`sparse`. Where a group has fewer than n values, zeros fill up, and these take part in
                products: with infinity or NaN in their columns of x the result is NaN.
            n: 1 .. m - 1.
            m: 2, 4, 8 or 16; cols is a multiple of it.
            type: as of :meth:`sparse`.

        Raises:
            KernelError: as :meth:`sparse`; a group has more than n values, which is said with its row and columns.
        """
        return cls(**_n_of_m.n_of_m(_source(matrix), n, m, type, _scales_of(matrix, type)))

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
            KernelError: not float32, or another shape; of int8 a NaN or an infinity; a layout for few pixels.
        """
        if not self.slab:
            fact = f"a weight of layout {self.layout} keeps its values in an order of its own"
            raise KernelError(fact, place="weight", remedy="train Weight.sparse(...) and convert what comes of it")
        held = shaped("values", buffer("values", values, 2), self.values.shape, "float32", "pass one for each value")
        rows_of = np.zeros(0, np.int64)
        if self.type == "int8":
            rows_of = self.places()[0][:, None] * self.height + np.arange(self.height)
        kept, scales = stored(held.array, rows_of, self.rows, self.type)
        other = copy(self)
        object.__setattr__(other, "code", None)
        for name, array in (("values", np.array(kept, order="C")), ("scales", scales)):
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
            KernelError: the columns of the weight are not those of the window, there is no such height, or the layout
                is one for few pixels.
        """
        from coppice.kernels._transposed import transpose

        if not self.slab:
            fact = f"a weight of layout {self.layout} has no transpose"
            raise KernelError(fact, place="weight", remedy="transpose Weight.sparse(weight)")
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
        dense = np.zeros((self.rows, self.cols), np.float32)
        row, column, place = LAYOUTS[self.layout].entries(self)
        dense[row, column] = widened(self.values.ravel()[place], self.type)
        return dense if self.scales is None else dense * self.scales[:, None]

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(band, column) of every entry, in order; of a layout without slabs (row, column) of every value."""
        return _bands.places(self) if self.slab else LAYOUTS[self.layout].entries(self)[:2]

    def __repr__(self) -> str:
        text = f"{self.rows} x {self.cols} {self.type}, height {self.height}"
        if self.layout == "dense":
            return f"Weight({text}, dense, slab {self.slab})"
        kind = f", {self.layout}" if not self.slab else ""
        kind += f" {self.kept} of {self.group}" if self.group else ""
        slab = f", slab {self.slab}" if self.slab else ""
        return f"Weight({text}{kind}, {self.entries} entries, density {self.density:.3f}{slab})"


def _refuse(name: str, fact: str) -> NoReturn:
    remedy = "build the weight with Weight.sparse(matrix) or another constructor"
    raise KernelError(fact, place=f"Weight.{name}", remedy=remedy)


def _source(matrix: Any) -> Triplets:
    """The entries of a matrix, or of a weight of any layout."""
    if not isinstance(matrix, Weight):
        return triplets(matrix)
    row, column, place = LAYOUTS[matrix.layout].entries(matrix)
    values = widened(matrix.values.ravel()[place], matrix.type)
    if matrix.scales is not None:
        values = values * matrix.scales[row]
    return matrix.rows, matrix.cols, row, column, values


def _scales_of(matrix: Any, kind: Type) -> NDArray[np.float32] | None:
    """Scales that a conversion keeps, so that no value changes."""
    return matrix.scales if isinstance(matrix, Weight) and matrix.type == kind == "int8" else None
