"""Matrices of other libraries as triplets, and weights as their matrices."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._errors import KernelError

if TYPE_CHECKING:
    from coppice.kernels._weight import Weight

Triplets = tuple[int, int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def triplets(matrix: Any) -> Triplets:
    """(rows, cols, row, column, value) of any supported matrix, in any order, without duplicates."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(matrix, torch.Tensor):
        if matrix.device.type != "cpu":
            _refuse(f"it is on {matrix.device}", "move it with .cpu()")
        matrix = matrix.detach()
        if matrix.layout == torch.sparse_csr and matrix.ndim == 2:
            starts, columns = matrix.crow_indices().numpy(), matrix.col_indices().numpy()
            return _from_csr(matrix.shape, starts, columns, matrix.values().numpy())
        if matrix.layout == torch.sparse_bsr and matrix.ndim == 2:
            starts, columns = matrix.crow_indices().numpy(), matrix.col_indices().numpy()
            return _from_bsr(matrix.shape, starts, columns, matrix.values().numpy())
        if matrix.layout != torch.strided:
            _refuse(f"its layout is {matrix.layout}", "convert it with .to_sparse_csr() or .to_dense()")
        matrix = matrix.numpy()
    if hasattr(matrix, "tocsr"):
        matrix = matrix.tocsr(copy=True)
        matrix.sum_duplicates()
        return _from_csr(matrix.shape, matrix.indptr, matrix.indices, matrix.data)
    if not isinstance(matrix, np.ndarray):
        _refuse(f"it is a {type(matrix).__name__}", "pass a numpy array, a torch tensor or a scipy sparse matrix")
    if matrix.ndim != 2:
        _refuse(f"it has {matrix.ndim} dimensions, not 2", "reshape it to [rows, cols], e.g. weight.flatten(1)")
    row, column = np.nonzero(matrix)
    return matrix.shape[0], matrix.shape[1], row, column, _float32(matrix[row, column])


def _from_csr(shape: tuple[int, ...], starts: NDArray[Any], columns: NDArray[Any], values: NDArray[Any]) -> Triplets:
    row = np.repeat(np.arange(shape[0], dtype=np.int64), np.diff(starts))
    return shape[0], shape[1], row, columns.astype(np.int64), _float32(values)


def _from_bsr(shape: tuple[int, ...], starts: NDArray[Any], columns: NDArray[Any], values: NDArray[Any]) -> Triplets:
    """Zeros inside of blocks are not taken over: which rows of a block count is for the height of the bands to say."""
    high, wide = values.shape[1:]
    block = np.repeat(np.arange(len(starts) - 1, dtype=np.int64), np.diff(starts))
    which, r, c = np.nonzero(values)
    return shape[0], shape[1], block[which] * high + r, columns[which] * wide + c, _float32(values[which, r, c])


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype != np.float32:
        _refuse(f"it is {values.dtype}, not float32", "convert it, e.g. weight.astype(numpy.float32)")
    return values


def _refuse(fact: str, remedy: str) -> NoReturn:
    raise KernelError(fact, place="weight", remedy=remedy)


def to_scipy(weight: Weight) -> Any:
    """A ``scipy.sparse.csr_array`` float32 [rows, cols] of all stored values, zeros among them."""
    from scipy import sparse

    from coppice.kernels._weight import LAYOUTS

    rows, columns, _ = LAYOUTS[weight.layout].entries(weight)
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(rows, minlength=weight.rows))])
    values = weight.to_dense()[rows, columns]
    return sparse.csr_array((values, columns, starts), shape=(weight.rows, weight.cols))


def to_torch(weight: Weight) -> Any:
    """The same as a torch tensor of layout sparse_csr."""
    import torch

    held = to_scipy(weight)
    starts, columns = torch.from_numpy(held.indptr.astype(np.int64)), torch.from_numpy(held.indices.astype(np.int64))
    data = torch.from_numpy(held.data)
    return torch.sparse_csr_tensor(starts, columns, data, size=held.shape, check_invariants=True)
