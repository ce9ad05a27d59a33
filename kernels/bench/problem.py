"""One shape at one sparsity: the numbers that all contenders are given, and what they must make of them."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coppice.kernels._weight import Type, Weight
from coppice.kernels.bench.shapes import Shape

Array = NDArray[np.float32]

#: Layouts of our weights and the rows of a band; None: dense.
LAYOUTS: dict[str, int | None] = {"csr": 1, "4x1": 4, "8x1": 8, "16x1": 16, "dense": None}
#: Those for few pixels, and the rows of the blocks that their zeros form; 0: as many values in each 16 columns.
FEW: dict[str, int] = {"bitmask": 1, "n:16": 0, "sell": 1}
FEW_PIXELS = 4
SHORT: dict[Type, str] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8"}

#: All numbers lie in LEAST .. MOST or its negative: none is subnormal, and an int8 is off by so much of it at most.
LEAST, MOST = 0.5, 1.5
UNITS: dict[Type, float] = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": MOST / LEAST / 254}


class Problem:
    """Weight and activations by layout and type; everything is made at its first use and then kept.

    The zeros of a weight are exactly ``sparsity`` of its places, at random: single values, or blocks of so many rows by
    one column; in N of 16 there are as many of each 16 columns as come nearest to it. The same numbers come out on
    every run.
    """

    def __init__(self, shape: Shape, sparsity: float) -> None:
        self.shape, self.sparsity = shape, sparsity
        self._seed = (shape.rows, shape.cols, shape.pixels, round(sparsity * 1e6))
        # Caches of this object, that die with it.
        self.matrix = lru_cache(maxsize=None)(self._matrix)
        self.weight = lru_cache(maxsize=None)(self._weight)
        self.exact = lru_cache(maxsize=None)(self._exact)
        self.quantised = lru_cache(maxsize=None)(self._quantised)
        self.x = _uniform(np.random.default_rng((*self._seed, 0)), shape.input)

    def _matrix(self, height: int) -> Array:
        """float32 [rows, cols] whose zeros are blocks of ``height`` rows by one column; 0: N of 16 columns."""
        random = np.random.default_rng((*self._seed, height))
        if height == 0:
            ranks = random.random((self.shape.rows, self.shape.cols // 16, 16)).argsort(axis=2).argsort(axis=2)
            shape = self.shape.rows, self.shape.cols
            patterned: Array = _uniform(random, shape) * (ranks < self._kept()).reshape(shape)
            return patterned
        bands = ceil(self.shape.rows / height)
        kept = np.ones(bands * self.shape.cols, bool)
        kept[random.permutation(kept.size)[: round(self.sparsity * kept.size)]] = False
        rows = np.repeat(kept.reshape(bands, self.shape.cols), height, axis=0)[: self.shape.rows]
        values: Array = _uniform(random, (self.shape.rows, self.shape.cols)) * rows
        return values

    def _kept(self) -> int:
        """Values in each 16 columns."""
        return min(15, max(1, round((1 - self.sparsity) * 16)))

    def _weight(self, layout: str, kind: Type) -> Weight:
        """The weight of our kernels; a dense one holds the zeros of ``matrix(1)``."""
        if layout == "code":
            return self.weight("csr", kind).compiled()
        if layout == "bitmask":
            return Weight.bitmask(self.matrix(1), type=kind)
        if layout == "sell":
            return Weight.sell(self.matrix(1))
        if layout == "n:16":
            return Weight.n_of_m(self.matrix(0), self._kept(), 16, type=kind)
        height = LAYOUTS[layout]
        if height is None:
            return Weight.dense(self.matrix(1), type=kind)
        return Weight.sparse(self.matrix(height), height=height, type=kind, pixels=self.shape.pixels)

    def _quantised(self) -> tuple[NDArray[np.int8], Array, NDArray[np.int8], float]:
        """``matrix(1)`` with a scale for each row, and x with one scale, as int8: value * scale is the number."""
        matrix = self.matrix(1)
        scales = np.maximum(np.abs(matrix).max(axis=1, initial=0), LEAST) / np.float32(127)
        scale = MOST / 127
        return (
            np.rint(matrix / scales[:, None]).astype(np.int8), scales, np.rint(self.x / scale).astype(np.int8), scale
        )  # fmt: skip

    def tensor(self, kind: Type) -> Any:
        """x as a torch tensor."""
        import torch

        return torch.from_numpy(self.x).to(getattr(torch, kind))

    def empty(self, kind: Type) -> Any:
        """A torch tensor for the result, as our kernels want it."""
        import torch

        window = self.shape.window
        sizes = (self.shape.pixels,) if window is None else window.out(*self.shape.input[1:])
        return torch.empty((self.shape.rows, *sizes), dtype=getattr(torch, kind))

    def entries(self, height: int) -> int:
        """Values of ``matrix(height)`` that are not zero."""
        return int(np.count_nonzero(self.matrix(height)))

    def _exact(self, height: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """The product in fp64, the sum of the magnitudes of its terms, and the terms of each row."""
        weight = self.matrix(height).astype(np.float64)
        columns = self._columns().astype(np.float64)
        terms = np.count_nonzero(weight, axis=1)[:, None]
        return weight @ columns, np.abs(weight) @ np.abs(columns), terms

    def _columns(self) -> Array:
        """x as the matrix [cols, pixels] of its windows."""
        held = self.shape.convolution
        if held is None or held.window is None:
            return self.x
        import torch

        unfold = torch.nn.functional.unfold
        made = unfold(torch.from_numpy(self.x)[None], held.kernel, padding=held.padding, stride=held.stride)
        columns: Array = made[0].numpy()
        return columns

    def error(
        self,
        result: NDArray[Any],
        height: int,
        weight: Type,
        activation: Type,
        arithmetic: Type = "float32",
        rounding: float = 0.0,
    ) -> float:
        """The largest error of a result over its bound: up to 1 it is right.

        The bound is a multiple of the sum of magnitudes: for n terms twice n + 1 roundings of fp32, one each of weight
        and activation to their types or that of the arithmetic, and one of the result to the type of the activation;
        fp16 sums as ``abi.h`` has them; plus ``rounding``.
        """
        exact, magnitude, terms = self.exact(height)
        w, x = UNITS[weight], max(UNITS[activation], UNITS[arithmetic])
        y = 0.0 if activation == "int8" else UNITS[activation]
        factor = 2 * (terms + 1) * float(np.finfo(np.float32).eps) + (1 + w) * (1 + x) * (1 + y) - 1
        if arithmetic == "float16":
            factor = factor + np.minimum(terms, 128) * 2**-10
        difference = np.abs(result.reshape(exact.shape) - exact)
        off = difference / np.maximum(factor * magnitude + rounding, np.finfo(np.float64).tiny)
        return float(np.nan_to_num(off, nan=np.inf).max(initial=0.0))


def _uniform(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    values = random.random(shape, np.float32) * np.float32(MOST - LEAST) + np.float32(LEAST)
    signs = random.integers(0, 2, shape, np.int8) * np.int8(2) - np.int8(1)
    return values * signs


def nbytes(*arrays: Any) -> int:
    """Bytes of numpy arrays and torch tensors together."""
    return sum(prod(array.shape) * (array.itemsize) for array in arrays)
