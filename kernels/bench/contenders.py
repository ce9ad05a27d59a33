"""Who takes part: every variant of ``matmul`` by layout and types, and the peers; one row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from coppice.kernels._errors import KernelError
from coppice.kernels._matmul import bind
from coppice.kernels._pool import Pool
from coppice.kernels._variants import Variant, pick, variants
from coppice.kernels._weight import Type
from coppice.kernels.bench.problem import FEW, FEW_PIXELS, LAYOUTS, SHORT, Problem, nbytes
from coppice.kernels.bench.shapes import Shape

#: What is measured unless more is asked for; ``best`` is the fastest variant of this machine.
TYPICAL = (
    "coppice/best/csr/fp32", "coppice/best/csr/fp16", "coppice/best/csr/int8xfp32", "coppice/best/4x1/fp32",
    "coppice/best/4x1/fp16", "coppice/best/16x1/fp16", "coppice/best/16x1/int8xfp32", "coppice/best/dense/fp32",
    "coppice/best/dense/fp16", "coppice/best/bitmask/fp16", "coppice/best/bitmask/int8", "coppice/best/n:16/int8xfp32",
    "coppice/best/sell/int8", "torch/dense/fp32", "torch/dense/bf16", "torch/dense/int8", "torch/csr/fp32",
    "scipy/csr/fp32", "onnxruntime/*", "openvino/*",
)  # fmt: skip

#: Products (rows * cols * pixels) up to which the slow variants take part: seconds a round, not minutes.
SLOW = {"generic": 1 << 27, "numba": 1 << 30}

_ACTIVATIONS: tuple[Type, ...] = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Setting:
    """What a contender may use: so many threads; ``pool`` holds ours where there are several."""

    threads: int
    pool: Pool | None


@dataclass(frozen=True)
class Prepared:
    """A contender on one problem, all buffers made and all weights packed.

    Attributes:
        call: does the work once.
        result: what the last call made of it: [rows, pixels], as numbers.
        traffic: bytes of weight, activations and result, each counted once.
        rounding: what rounding the result to few bits may add to its error.
    """

    call: Callable[[], object]
    result: Callable[[], Any]
    traffic: int
    rounding: float = 0.0


@dataclass(frozen=True)
class Contender:
    """One way to compute the layer.

    Attributes:
        name: tool, variant, layout and type, with slashes between; types as weight x activation where they differ.
        prepare: makes it ready for a problem.
        weight, activation: the types of what it is given; they say how exact it must be (:meth:`Problem.error`).
        height: rows of the blocks that its zeros form; 0: N of 16 columns.
        dense: it computes the products with zeros too, and its GFLOP/s count them.
        isa: the instruction set of its peak; None: the highest.
        suits: the shapes that it can do.
    """

    name: str
    prepare: Callable[[Problem, Setting], Prepared]
    weight: Type = "float32"
    activation: Type = "float32"
    height: int = 1
    dense: bool = False
    isa: str | None = None
    suits: Callable[[Shape], bool] = lambda shape: True

    @property
    def ours(self) -> bool:
        """Whether it is a kernel of this project."""
        return self.name.startswith("coppice/")


def contenders() -> list[Contender]:
    """All that can run here, the baseline first, then ours, then peers."""
    from coppice.kernels.bench.peers import peers
    from coppice.kernels.bench.runtimes import runtimes

    floats: list[tuple[Type, Type]] = [(weight, activation) for activation in _ACTIVATIONS for weight in SHORT]
    bytes_: list[tuple[Type, Type]] = [("int8", "int8")]
    types = dict.fromkeys(LAYOUTS, floats) | {"bitmask": floats + bytes_, "n:16": floats, "sell": bytes_}
    ours = [
        _ours(variant, layout, weight, activation)
        for variant in variants()
        if variant.primitive == "matmul" and variant.available
        for layout in types
        for weight, activation in types[layout]
    ]
    return [*peers()[:1], *ours, *peers()[1:], *runtimes()]


def _ours(variant: Variant, layout: str, weight: Type, activation: Type) -> Contender:
    """int8 activations are given as float32 and rounded by the kernel, with ``arithmetic="int8"``."""
    given: Type = "float32" if activation == "int8" else activation

    def prepare(problem: Problem, setting: Setting) -> Prepared:
        held, x, out = problem.weight(layout, weight), problem.tensor(given), problem.empty(given)
        arithmetic = "int8" if activation == "int8" else "float32"
        call = bind(held, x, window=problem.shape.window, out=out, pool=setting.pool, variant=variant.name,
                    arithmetic=arithmetic)  # fmt: skip
        return Prepared(call, lambda: out.double().numpy(), held.nbytes + nbytes(x, out))

    def suits(shape: Shape) -> bool:
        most = SLOW.get(variant.name)
        few = layout not in FEW or (shape.pixels <= FEW_PIXELS and (layout != "n:16" or shape.cols % 16 == 0))
        return few and (most is None or shape.rows * shape.cols * shape.pixels <= most)

    types = SHORT[weight] if weight == activation else f"{SHORT[weight]}x{SHORT[activation]}"
    return Contender(
        name=f"coppice/{variant.name}/{layout}/{types}",
        prepare=prepare,
        weight=weight,
        activation=activation,
        height=FEW[layout] if layout in FEW else LAYOUTS[layout] or 1,
        dense=layout == "dense",
        isa=variant.isa,
        suits=suits,
    )


def select(patterns: Sequence[str], baseline: str) -> list[Contender]:
    """The contenders whose names match a pattern (``*``, ``?`` and ``[...]`` as in a shell), and the baseline, first.

    ``best`` in the place of a variant is the fastest one of this machine.

    Raises:
        KernelError: the baseline is not there, or a pattern other than those of ``TYPICAL`` matches nothing.
    """
    every = contenders()
    best = pick("matmul", None).name
    found = [row for row in every if row.name == baseline]
    if not found:
        remedy = f"use one of {', '.join(row.name for row in every if not row.ours)}"
        raise KernelError(f"there is no {baseline!r}", place="baseline", remedy=remedy)
    chosen: set[str] = {baseline}
    for pattern in patterns:
        exact = pattern.replace("/best/", f"/{best}/")
        names = {row.name for row in every if fnmatchcase(row.name, exact)}
        if not names and pattern not in TYPICAL:
            remedy = f"names look like coppice/{best}/4x1/fp16 or torch/dense/fp32; 'coppice/best/*' are ours"
            raise KernelError(f"nothing is called {pattern!r}", place="kernels", remedy=remedy)
        chosen |= names
    return found + [row for row in every if row.name in chosen and row.name != baseline]
