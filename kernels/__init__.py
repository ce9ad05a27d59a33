"""Kernels in C, with a numba fallback: what they compute, which there are, and how to call them.

    weight = CSR.of(dense)
    y = spmm(weight, x, bias=bias, activation="relu")

The C side is described by ``abi.h``; layouts, ranges and measured speed by ``docs/kernels.md``.
"""

from coppice.kernels._csr import CSR
from coppice.kernels._errors import IsaError, KernelError, KernelsUnavailable
from coppice.kernels._spmm import ACTIVATIONS, bind, spmm
from coppice.kernels._variants import Status, Variant, isa, status, variants

__all__ = [
    "ACTIVATIONS",
    "CSR",
    "IsaError",
    "KernelError",
    "KernelsUnavailable",
    "Status",
    "Variant",
    "bind",
    "isa",
    "spmm",
    "status",
    "variants",
]
