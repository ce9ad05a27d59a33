"""What the functions of all primitives do to get from arguments to a call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from typing import Any, ClassVar, ParamSpec, Protocol, cast

import numpy as np

from coppice.kernels._buffers import Buffer
from coppice.kernels._errors import KernelError
from coppice.kernels._load import load
from coppice.kernels._pool import Pool
from coppice.kernels._types import TYPES
from coppice.kernels._variants import Variant, pick

P = ParamSpec("P")

_NUMBERS = {kind: number for number, kind in enumerate(TYPES)}


@dataclass(eq=False)
class Call(ABC):
    """Checked arguments of one call: what a primitive has of its own, and how C is told.

    The variants of C take it as ``coppice_<primitive>_args`` of ``abi.h``, numba's as it is, in the module of
    ``coppice.kernels.numba`` that is called like the primitive.

    Attributes:
        result: what the call writes and returns, as the user has it.
        pool, variant: who is to compute it.
    """

    primitive: ClassVar[str]
    result: Any
    pool: Pool | None
    variant: str | None

    @abstractmethod
    def fill(self, args: Any) -> object:
        """Writes the argument structure, but for its work; returns what else it points to."""

    def bound(self) -> Callable[[], None]:
        """The bare call."""
        chosen = pick(self.primitive, self.variant)
        if chosen.index < 0:
            module = import_module(f"coppice.kernels.numba.{self.primitive}")
            if hasattr(module, "bind"):  # where something is worth doing once
                bound: Callable[[], None] = module.bind(self)
                return bound
            return partial(module.run, self)
        library = load()
        kind, scratch = library.arguments(self.primitive)
        args = library.ffi.new(kind)
        alive = self.fill(args)
        return bind_c(chosen, args, scratch(args) if scratch else 0, self.pool, self, alive)


class Primitive(Protocol[P]):
    """A function of the kernels: called, or bound to its arguments to be called many times."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Checks the arguments, computes, and returns ``out``."""

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Callable[[], None]:
        """Checks the arguments once and returns the call, to be made many times on the same buffers.

        ``out`` must be among them. What they hold is read anew at every call; nothing is copied.
        """


def primitive(check: Callable[P, Call]) -> Primitive[P]:
    """The function of a primitive, with its ``bind``, from the one that checks its arguments."""

    @wraps(check)
    def function(*args: P.args, **kwargs: P.kwargs) -> Any:
        job = check(*args, **kwargs)
        job.bound()()
        return job.result

    def bind(*args: P.args, **kwargs: P.kwargs) -> Callable[[], None]:
        if kwargs.get("out") is None:
            fact = "a bound call writes into the same array every time"
            raise KernelError(fact, place="out", remedy="pass that array, e.g. numpy.empty(shape, x.dtype)")
        return check(*args, **kwargs).bound()

    function.__annotations__ = check.__annotations__ | {"return": "Any"}
    function.bind = bind  # type: ignore[attr-defined]
    bind.__doc__ = Primitive.bind.__doc__
    return cast("Primitive[P]", function)


def shaped(name: str, held: Buffer, shape: tuple[int, ...], kind: str, remedy: str) -> Buffer:
    """``held``, if it is of this shape and type; else a KernelError."""
    if held.array.shape != shape or held.type != kind:
        fact = f"it is {held.type} {list(held.array.shape)}, the other arguments ask for {kind} {list(shape)}"
        raise KernelError(fact, place=name, remedy=remedy)
    return held


def refuse_overlap(
    out: Buffer, others: dict[str, Buffer | None], in_place: tuple[str, ...] = (), place: str = "out"
) -> None:
    """Refuses an ``out`` that cannot be written or shares memory with others; those in ``in_place`` may be it."""
    if not out.array.flags.writeable:
        raise KernelError("it is read-only", place=place, remedy="pass a writable array, or none")
    for name, other in others.items():
        if other is not None and out.overlaps(other) and not (name in in_place and other.same_as(out)):
            raise KernelError(f"it overlaps {name}", place=place, remedy="pass an array of its own, or none")


def type_number(kind: str) -> int:
    """The ``coppice_type`` of ``abi.h``."""
    return _NUMBERS[kind]


def address(held: Buffer | Any | None) -> Any:
    """Of the first element; NULL for None."""
    ffi = load().ffi
    if held is None:
        return ffi.NULL
    return ffi.cast("void *", held.address if isinstance(held, Buffer) else held.ctypes.data)


def bind_c(variant: Variant, args: Any, scratch_bytes: int, pool: Pool | None, *alive: object) -> Callable[[], None]:
    """The call of a variant of the C library; ``alive`` is what the addresses in ``args`` point to."""
    library = load()
    threads = 1 if pool is None else pool.threads
    scratch = np.empty(max(0, scratch_bytes) * threads, np.uint8)
    args.work.shares, args.work.scratch, args.work.scratch_bytes = 1, library.ffi.from_buffer(scratch), scratch.nbytes
    run, index = library.c.coppice_variant_run, variant.index

    def call(_alive: object = (scratch, *alive)) -> None:
        status = run(index, args) if pool is None else pool.run(index, args)
        if status:
            remedy = "report this: the arguments should have been refused earlier"
            place = f"{variant.primitive} {variant.name}"
            raise KernelError(library.status_text(status), place=place, remedy=remedy)

    return call
