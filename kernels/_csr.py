"""The sparse weight that ``spmm`` takes: CSR, cut into slabs of columns (layout COPPICE_SLAB_CSR of ``abi.h``)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import ceil
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._errors import KernelError

#: Columns are stored in 16 bits, relative to their slab.
SLAB_MAX = 1 << 16
_SIZE_MAX = (1 << 31) - 1


@dataclass(frozen=True, eq=False)
class CSR:
    """A sparse fp32 matrix [rows, cols], immutable; build one with :meth:`of`.

    The columns are cut into slabs of ``slab`` columns (the last may be narrower; there is always one), each of which is
    a CSR matrix of its own. Row r of slab s holds the entries ``starts[s * rows + r]`` up to
    ``starts[s * rows + r + 1]``. An entry may be zero; what has no entry takes no part in a product.

    Attributes:
        rows, cols: 0 .. 2^31 - 1.
        slab: 1 .. 65536 columns; ``slab >= cols`` is ordinary CSR.
        starts: uint32 [slabs * rows + 1].
        columns: uint16 [entries], relative to the slab, strictly rising within a row of a slab.
        values: float32 [entries].

    Raises:
        KernelError: the arrays contradict each other or the above. They are checked whole, so untrusted ones may come.
    """

    rows: int
    cols: int
    slab: int
    starts: NDArray[np.uint32]
    columns: NDArray[np.uint16]
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, least, most in (("rows", 0, _SIZE_MAX), ("cols", 0, _SIZE_MAX), ("slab", 1, SLAB_MAX)):
            size = getattr(self, name)
            if not least <= size <= most:
                raise KernelError(f"{size} is not in {least} .. {most}", place=f"CSR.{name}", remedy="check the source")
        for name, dtype in (("starts", np.uint32), ("columns", np.uint16), ("values", np.float32)):
            array = np.array(getattr(self, name), order="C")  # a copy: nobody else can change what was checked
            if array.ndim != 1 or array.dtype != dtype:
                fact = f"expected {np.dtype(dtype)} [n], got {array.dtype} {list(array.shape)}"
                raise KernelError(fact, place=f"CSR.{name}", remedy="build the matrix with CSR.of(weight)")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        fault = self._fault()
        if fault:
            raise KernelError(fault[1], place=f"CSR.{fault[0]}", remedy="build the matrix with CSR.of(weight)")

    def _fault(self) -> tuple[str, str] | None:
        """What ``coppice_csr_validate`` checks, and the lengths, which C cannot see: (field, fact) or None."""
        lists = self.slabs * self.rows
        if len(self.starts) != lists + 1:
            return "starts", f"{self.slabs} slabs of {self.rows} rows need {lists + 1} starts, got {len(self.starts)}"
        if len(self.columns) != len(self.values):
            return "columns", f"{len(self.columns)} columns for {len(self.values)} values"
        if self.starts[0] != 0 or self.starts[-1] != len(self.values):
            return "starts", f"they run from {self.starts[0]} to {self.starts[-1]}, not from 0 to {len(self.values)}"
        if np.any(self.starts[1:] < self.starts[:-1]):
            return "starts", f"they fall after position {int(np.argmax(self.starts[1:] < self.starts[:-1]))}"
        owner = np.repeat(np.arange(lists), np.diff(self.starts))
        width = np.minimum(self.slab, self.cols - owner // max(self.rows, 1) * self.slab)
        if np.any(self.columns >= width):
            return "columns", f"entry {int(np.argmax(self.columns >= width))} lies outside its slab"
        repeats = (owner[1:] == owner[:-1]) & (self.columns[1:] <= self.columns[:-1])
        if np.any(repeats):
            return "columns", f"entry {int(np.argmax(repeats)) + 1} does not lie after the one before it in its row"
        return None

    @property
    def slabs(self) -> int:
        """Number of slabs, at least 1."""
        return max(1, ceil(self.cols / self.slab))

    @property
    def entries(self) -> int:
        """Number of stored values."""
        return len(self.values)

    @property
    def density(self) -> float:
        """Stored values as a fraction of rows * cols; 0 for an empty matrix."""
        return self.entries / (self.rows * self.cols) if self.rows and self.cols else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.starts.nbytes + self.columns.nbytes + self.values.nbytes

    @classmethod
    def of(cls, weight: Any, slab: int | None = None, *, pixels: int | None = None) -> CSR:
        """A dense or CSR matrix as slab CSR.

        Args:
            weight: float32 [rows, cols]: a dense numpy array or torch CPU tensor (zeros get no entry), a torch tensor
                of layout sparse_csr, or a scipy sparse matrix (explicit zeros stay entries, duplicates are added up).
            slab: columns per slab, 1 .. 65536; None: what runs fast at this density.
            pixels: how many the products will have, where it is known; it only bears on the choice of slab.

        Raises:
            KernelError: not two-dimensional, not float32, or not on the CPU.
        """
        rows, cols, row, column, value = _triplets(weight)
        if slab is None:
            slab = fast_slab(cols, len(value) / (rows * cols) if rows and cols else 0.0, pixels)
        if not 1 <= slab <= SLAB_MAX:
            raise KernelError(f"{slab} is not in 1 .. {SLAB_MAX}", place="slab", remedy="leave it out")
        order = np.lexsort((column, row, column // slab))
        row, column, value = row[order], column[order], value[order]
        lists = max(1, ceil(cols / slab)) * rows
        counts = np.bincount(column // slab * rows + row, minlength=lists)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        if starts[-1] > np.iinfo(np.uint32).max:
            raise KernelError("2^32 entries or more", place="weight", remedy="split the matrix by rows")
        return cls(rows, cols, slab, starts.astype(np.uint32), (column % slab).astype(np.uint16), value)

    def to_dense(self) -> NDArray[np.float32]:
        """The matrix with its zeros, [rows, cols]."""
        dense = np.zeros((self.rows, self.cols), np.float32)
        owner = np.repeat(np.arange(self.slabs * self.rows), np.diff(self.starts))
        if self.entries:
            dense[owner % self.rows, owner // self.rows * self.slab + self.columns] = self.values
        return dense

    def __repr__(self) -> str:
        return f"CSR({self.rows} x {self.cols}, {self.entries} entries, density {self.density:.3f}, slab {self.slab})"


def fast_slab(cols: int, density: float, pixels: int | None = None) -> int:
    """Columns per slab that suit the vector kernels, slabs being equally wide.

    Two forces, measured in docs/kernels.md: 192 columns x 80 pixels (or as much in another shape, where the pixels are
    known and fewer) are about what the first-level cache serves with help from the second; below 13 entries per row of
    a slab, beginning and ending a row costs more than it saves. A single pixel needs no slabs.
    """
    if pixels == 1:
        return min(SLAB_MAX, max(1, cols))
    panel = 80 if pixels is None else max(16, min(80, ceil(pixels / 16) * 16))
    widest = max(192 * 80 / panel, 13 / max(density, 1e-9))
    return min(SLAB_MAX, max(1, ceil(cols / max(1, ceil(cols / widest)))))


_Triplets = tuple[int, int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def _triplets(weight: Any) -> _Triplets:
    """(rows, cols, row, column, value) of any supported matrix, in any order, without duplicates."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(weight, torch.Tensor):
        if weight.device.type != "cpu":
            _refuse(f"it is on {weight.device}", "move it with .cpu()")
        weight = weight.detach()
        if weight.layout == torch.sparse_csr and weight.ndim == 2:
            shape, starts = weight.shape, weight.crow_indices().numpy()
            return _from_csr(shape, starts, weight.col_indices().numpy(), weight.values().numpy())
        if weight.layout != torch.strided:
            _refuse(f"its layout is {weight.layout}", "convert it with .to_sparse_csr() or .to_dense()")
        weight = weight.numpy()
    if hasattr(weight, "tocsr"):
        weight = weight.tocsr(copy=True)
        weight.sum_duplicates()
        return _from_csr(weight.shape, weight.indptr, weight.indices, weight.data)
    if not isinstance(weight, np.ndarray):
        _refuse(f"it is a {type(weight).__name__}", "pass a numpy array, a torch tensor or a scipy sparse matrix")
    if weight.ndim != 2:
        _refuse(f"it has {weight.ndim} dimensions, not 2", "reshape it to [rows, cols], e.g. weight.flatten(1)")
    row, column = np.nonzero(weight)
    return weight.shape[0], weight.shape[1], row, column, _float32(weight[row, column])


def _from_csr(shape: tuple[int, ...], starts: NDArray[Any], columns: NDArray[Any], values: NDArray[Any]) -> _Triplets:
    row = np.repeat(np.arange(shape[0], dtype=np.int64), np.diff(starts))
    return shape[0], shape[1], row, columns.astype(np.int64), _float32(values)


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype != np.float32:
        _refuse(f"it is {values.dtype}, not float32", "convert it, e.g. weight.astype(numpy.float32)")
    return values


def _refuse(fact: str, remedy: str) -> NoReturn:
    raise KernelError(fact, place="weight", remedy=remedy)
