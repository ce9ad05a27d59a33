"""Kernels in C, with a numba fallback: what they compute, which there are, and how to call them.

    weight = Weight.sparse(matrix, height=4)
    y = matmul(weight, x, bias=bias, activation="relu")
    call = matmul.bind(weight, x, out=y)  # checked once, to be called many times; every primitive has it

The C side is described by ``abi.h``; layouts, ranges and measured speed by ``docs/kernels.md``.
"""

from coppice.kernels._activations import ACTIVATIONS
from coppice.kernels._depthwise import depthwise
from coppice.kernels._eltwise import eltwise
from coppice.kernels._errors import IsaError, KernelError, KernelsUnavailable
from coppice.kernels._fastest import Choice, fastest
from coppice.kernels._input_gradient import input_gradient
from coppice.kernels._matmul import bind, matmul
from coppice.kernels._norm import layer_norm, rms_norm
from coppice.kernels._pool import Pool
from coppice.kernels._pooling import average_pool, max_pool
from coppice.kernels._softmax import softmax
from coppice.kernels._transposed import Transposed
from coppice.kernels._variants import Status, Variant, isa, status, variants
from coppice.kernels._weight import Weight
from coppice.kernels._weight_gradient import weight_gradient
from coppice.kernels._window import Window

__all__ = [
    "ACTIVATIONS",
    "Choice",
    "IsaError",
    "KernelError",
    "KernelsUnavailable",
    "Pool",
    "Status",
    "Transposed",
    "Variant",
    "Weight",
    "Window",
    "average_pool",
    "bind",
    "depthwise",
    "eltwise",
    "fastest",
    "input_gradient",
    "isa",
    "layer_norm",
    "matmul",
    "max_pool",
    "rms_norm",
    "softmax",
    "status",
    "variants",
    "weight_gradient",
]
