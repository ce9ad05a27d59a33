"""What the functions of all primitives do to get from arguments to a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from coppice.kernels._buffers import Buffer
from coppice.kernels._errors import KernelError
from coppice.kernels._load import load
from coppice.kernels._pool import Pool
from coppice.kernels._types import TYPES
from coppice.kernels._variants import Variant


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
        same = name in in_place and other is not None and other.same_as(out)
        if other is not None and not same and np.shares_memory(out.array, other.array):
            raise KernelError(f"it overlaps {name}", place=place, remedy="pass an array of its own, or none")


def type_number(kind: str) -> int:
    """The ``coppice_type`` of ``abi.h``."""
    return list(TYPES).index(kind)


def address(held: Buffer | Any | None) -> Any:
    """Of the first element; NULL for None."""
    ffi = load().ffi
    if held is None:
        return ffi.NULL
    return ffi.cast("void *", (held.array if isinstance(held, Buffer) else held).ctypes.data)


def bind_c(variant: Variant, args: Any, scratch_bytes: int, pool: Pool | None, *alive: object) -> Callable[[], None]:
    """The call of a variant of the C library; ``alive`` is what the addresses in ``args`` point to."""
    library = load()
    threads = 1 if pool is None else pool.threads
    scratch = np.empty(max(0, scratch_bytes) * threads, np.uint8)
    args.work.shares, args.work.scratch, args.work.scratch_bytes = 1, address(scratch), scratch.nbytes
    run, index = library.c.coppice_variant_run, variant.index

    def call(_alive: object = (scratch, *alive)) -> None:
        status = run(index, args) if pool is None else pool.run(index, args)
        if status:
            remedy = "report this: the arguments should have been refused earlier"
            place = f"{variant.primitive} {variant.name}"
            raise KernelError(library.status_text(status), place=place, remedy=remedy)

    return call
