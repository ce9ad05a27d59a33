"""Peers that every installation has: torch (MKL and oneDNN) and scipy."""

from __future__ import annotations

import warnings
from functools import partial

from coppice.kernels._weight import Type
from coppice.kernels.bench.contenders import Contender, Prepared, Setting
from coppice.kernels.bench.problem import SHORT, Problem, nbytes
from coppice.kernels.bench.shapes import Shape


def peers() -> list[Contender]:
    """Dense torch in fp32 first: it is what speedups are against unless another is named."""
    kinds: tuple[Type, ...] = ("float32", "bfloat16", "float16")
    return [
        *(Contender(f"torch/dense/{SHORT[kind]}", partial(_torch, kind), kind, kind, dense=True) for kind in kinds),
        Contender("torch/dense/int8", _torch_int8, "int8", "int8", dense=True, suits=_is_matrix),
        Contender("torch/csr/fp32", _torch_csr, suits=_is_matrix),
        Contender("scipy/csr/fp32", _scipy_csr, suits=_is_matrix),
    ]


def _is_matrix(shape: Shape) -> bool:
    return shape.window is None


def _torch(kind: Type, problem: Problem, _: Setting) -> Prepared:
    """``mm``, or ``conv2d`` where there is a window."""
    import torch

    x, shape = problem.tensor(kind), problem.shape
    weight = torch.from_numpy(problem.matrix(1)).to(x.dtype)
    if shape.convolution is not None and shape.window is not None:
        image, kernels = x[None], weight.reshape(shape.rows, -1, *shape.convolution.kernel)
        convolve = partial(
            torch.nn.functional.conv2d, image, kernels,
            stride=shape.convolution.stride, padding=shape.convolution.padding,
        )  # fmt: skip
        held = [convolve()]

        def call() -> None:
            held[0] = convolve()

        return Prepared(call, lambda: held[0].double().numpy(), nbytes(weight, x, held[0]))
    out = problem.empty(kind)
    if shape.pixels == 1 and kind == "float16":  # mm takes five times as long
        return Prepared(
            partial(torch.mv, weight, x[:, 0], out=out[:, 0]), lambda: out.double().numpy(), nbytes(weight, x, out)
        )
    return Prepared(partial(torch.mm, weight, x, out=out), lambda: out.double().numpy(), nbytes(weight, x, out))


def _torch_int8(problem: Problem, _: Setting) -> Prepared:
    """The product of int8 matrices as int32: what was quantised beforehand, without the scales afterwards."""
    import torch

    weight, scales, x, scale = problem.quantised()
    weights, inputs = torch.from_numpy(weight), torch.from_numpy(x)
    out = torch.empty(problem.shape.rows, problem.shape.pixels, dtype=torch.int32)
    return Prepared(
        partial(torch._int_mm, weights, inputs, out=out),
        lambda: out.numpy() * (scales[:, None].astype(float) * scale),
        nbytes(weights, inputs, out),
    )


def _torch_csr(problem: Problem, _: Setting) -> Prepared:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        weight = torch.from_numpy(problem.matrix(1)).to_sparse_csr()
    x, out = problem.tensor("float32"), problem.empty("float32")
    traffic = nbytes(weight.values(), weight.col_indices(), weight.crow_indices(), x, out)
    return Prepared(partial(torch.mm, weight, x, out=out), lambda: out.double().numpy(), traffic)


def _scipy_csr(problem: Problem, _: Setting) -> Prepared:
    """On one thread always: scipy has no other."""
    from scipy import sparse

    weight, x = sparse.csr_array(problem.matrix(1)), problem.x
    held = [weight @ x]

    def call() -> None:
        held[0] = weight @ x

    return Prepared(call, lambda: held[0], nbytes(weight.data, weight.indices, weight.indptr, x, held[0]))
