"""Who takes part: every variant of ``matmul`` by layout and types, and the peers; one row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from coppice.kernels._errors import KernelError
from coppice.kernels._matmul import bind
from coppice.kernels._pool import Pool
from coppice.kernels._types import ACTIVATION_TYPES
from coppice.kernels._variants import Variant, includes, pick, variants
from coppice.kernels._weight import Type
from coppice.kernels.bench.problem import FEW, FEW_PIXELS, LAYOUTS, SHORT, Problem, nbytes
from coppice.kernels.bench.shapes import Shape

#: What is measured unless more is asked for; ``best`` is the fastest variant of this machine.
TYPICAL = (
    "coppice/best/csr/fp32", "coppice/best/code/fp32", "coppice/best/csr/fp16", "coppice/best/csr/int8xfp32",
    "coppice/best/4x1/fp32", "coppice/best/4x1/fp16", "coppice/best/16x1/fp16", "coppice/best/16x1/int8xfp32",
    "coppice/best/dense/fp32", "coppice/best/dense/fp16", "coppice/best/bitmask/fp16", "coppice/best/n:16/int8xfp32",
    "coppice/best/*@*", "torch/dense/fp32", "torch/dense/bf16",
    "torch/dense/int8", "torch/csr/fp32", "scipy/csr/fp32", "onnxruntime/*", "openvino/*",
)  # fmt: skip

#: Arithmetic that may be allowed: of which weight and activation, and the least instruction sets that have it.
ARITHMETIC: dict[Type, tuple[Type, Type, tuple[str, ...]]] = {
    "float16": ("float16", "float16", ("neon_fp16", "avx512_fp16")),
    "bfloat16": ("bfloat16", "bfloat16", ("avx512_bf16",)),
    "int8": ("int8", "float32", ("avx512_vnni",)),
}
#: Of those, what dense weights do by tiles, and the least instruction set.
TILES: dict[Type, str] = {"int8": "amx_int8", "bfloat16": "amx_bf16"}

#: Products (rows * cols * pixels) up to which the slow variants take part: seconds a round, not minutes.
SLOW = {"generic": 1 << 27, "numba": 1 << 30}


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
        name: tool, variant, layout and type, with slashes between; types as weight x activation where they differ,
            and behind @ the arithmetic that is allowed; the layout ``code`` is CSR by straight-line code.
        prepare: makes it ready for a problem.
        weight, activation: the types of what it is given; they say how exact it must be (:meth:`Problem.error`).
        arithmetic: what is allowed; so does this.
        height: rows of the blocks that its zeros form; 0: N of 16 columns.
        dense: it computes the products with zeros too, and its GFLOP/s count them.
        peak: what its peak is of, see ``Peaks.gflops``; None: the highest in fp32.
        suits: the shapes that it can do.
    """

    name: str
    prepare: Callable[[Problem, Setting], Prepared]
    weight: Type = "float32"
    activation: Type = "float32"
    arithmetic: Type = "float32"
    height: int = 1
    dense: bool = False
    peak: str | None = None
    suits: Callable[[Shape], bool] = lambda shape: True

    @property
    def ours(self) -> bool:
        """Whether it is a kernel of this project."""
        return self.name.startswith("coppice/")


def contenders() -> list[Contender]:
    """All that can run here, the baseline first, then ours, then peers."""
    from coppice.kernels.bench.peers import peers
    from coppice.kernels.bench.runtimes import runtimes

    ours = []
    for variant in variants():
        if variant.primitive != "matmul" or not variant.available:
            continue
        exact: list[tuple[Type, Any, Any]] = [(w, x, "float32") for x in ACTIVATION_TYPES for w in SHORT]
        given_up: list[tuple[Type, Any, Any]] = [
            (*types[:2], kind)
            for kind, types in ARITHMETIC.items()
            if any(includes(variant.isa, least) for least in types[2])
        ]
        integers = [types for types in given_up if types[2] == "int8"]
        kinds = dict.fromkeys(LAYOUTS, exact + given_up) | {"bitmask": exact + integers, "n:16": exact}
        kinds["sell"] = [("int8", "float32", "float32"), *integers]
        if includes(variant.isa, "avx512"):
            kinds["code"] = exact
        ours += [_ours(variant, layout, *types) for layout in kinds for types in kinds[layout]]
    return [*peers()[:1], *ours, *peers()[1:], *runtimes()]


def _ours(variant: Variant, layout: str, weight: Type, activation: Any, arithmetic: Any) -> Contender:
    def prepare(problem: Problem, setting: Setting) -> Prepared:
        held, x, out = problem.weight(layout, weight), problem.tensor(activation), problem.empty(activation)
        call = bind(held, x, window=problem.shape.window, out=out, arithmetic=arithmetic, pool=setting.pool,
                    variant=variant.name)  # fmt: skip
        return Prepared(call, lambda: out.double().numpy(), held.nbytes + nbytes(x, out))

    def suits(shape: Shape) -> bool:
        most = SLOW.get(variant.name)
        few = layout not in FEW or (shape.pixels <= FEW_PIXELS and (layout != "n:16" or shape.cols % 16 == 0))
        return few and (most is None or shape.rows * shape.cols * shape.pixels <= most)

    types = SHORT[weight] if weight == activation else f"{SHORT[weight]}x{SHORT[activation]}"
    return Contender(
        name=f"coppice/{variant.name}/{layout}/{types}" + ("" if arithmetic == "float32" else f"@{SHORT[arithmetic]}"),
        prepare=prepare,
        weight=weight,
        activation=activation,
        arithmetic=arithmetic,
        height=FEW[layout] if layout in FEW else LAYOUTS.get(layout, 1) or 1,
        dense=layout == "dense",
        peak=_peak(variant, layout, arithmetic),
        suits=suits,
    )


def _peak(variant: Variant, layout: str, arithmetic: Type) -> str:
    if arithmetic == "float32":
        return variant.isa
    tiles = layout == "dense" and arithmetic in TILES and includes(variant.isa, TILES[arithmetic])
    return SHORT[arithmetic] + " tiles" * tiles


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
