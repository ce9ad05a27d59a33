"""Which implementations there are, those of the C library and those of numba alike, and the one that calls take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

from coppice.kernels import _env
from coppice.kernels._errors import IsaError, KernelsUnavailable
from coppice.kernels._load import Library, load

PRIMITIVES = ("matmul", "weight_gradient", "depthwise", "norm", "softmax", "pooling", "eltwise")


@dataclass(frozen=True)
class Variant:
    """One implementation of a primitive.

    Attributes:
        primitive: what it computes, e.g. ``matmul``.
        name: unique within its primitive; what the ``variant`` argument of a call takes.
        isa: the instruction set it needs; ``numba`` for what is compiled on first use.
        available: whether this machine, and ``COPPICE_ISA``, allow it.
        index: its number in the C library, -1 for numba.
    """

    primitive: str
    name: str
    isa: str
    available: bool
    index: int


@dataclass(frozen=True)
class Status:
    """What calls run on: ``library`` whether the C library is loaded, ``isa`` the highest instruction set in use
    (``numba`` without the library), ``detail`` one sentence for people."""

    library: bool
    isa: str
    detail: str


def _library() -> Library | KernelsUnavailable:
    try:
        return load()
    except KernelsUnavailable as error:
        limit = _env.isa_limit()
        if limit is not None:
            raise IsaError(
                f"it asks for {limit!r}, but there is nothing to choose from: {error.fact}",
                place=_env.ISA,
                remedy=f"unset it, or {error.remedy}",
            ) from error
        return error


def variants() -> list[Variant]:
    """All implementations; within a primitive from the C reference to the fastest, then numba.

    Raises:
        IsaError: ``COPPICE_ISA`` names what is unknown or missing.
    """
    library = _library()
    found = []
    if isinstance(library, Library):
        info = library.ffi.new("coppice_variant *")
        names = library.isa_names()
        for index in range(library.c.coppice_variant_count()):
            library.c.coppice_variant_info(index, info)
            primitive, name = library.text(info.primitive), library.text(info.name)
            found.append(Variant(primitive, name, names[info.isa], bool(info.available), index))
    return found + [Variant(primitive, "numba", "numba", has_numba(), -1) for primitive in PRIMITIVES]


@lru_cache(maxsize=1)
def has_numba() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


def pick(primitive: str, name: str | None) -> Variant:
    """The variant called ``name``; None: the fastest of the C library, or numba's without it.

    Raises:
        IsaError: none has this name, or the machine lacks it.
        KernelsUnavailable: there is neither a C library nor numba.
    """
    library = _library()
    if isinstance(library, Library):
        return _found(library, library.c.coppice_isa_active(), primitive, name)
    return _find(primitive, name)


@lru_cache(maxsize=256)
def _found(library: Library, isa: int, primitive: str, name: str | None) -> Variant:
    """Looking for it takes longer than a small call; the limit may move, and then it is looked for again."""
    del library, isa
    return _find(primitive, name)


def _find(primitive: str, name: str | None) -> Variant:
    rows = [variant for variant in variants() if variant.primitive == primitive]
    usable = [variant for variant in rows if variant.available]
    if name is None:
        compiled = [variant for variant in usable if variant.index >= 0]
        if compiled or usable:
            return (compiled or usable)[-1]
        missing = _library()
        assert isinstance(missing, KernelsUnavailable)
        remedy = f"{missing.remedy}, or install numba"
        raise KernelsUnavailable(f"{missing.fact}, and there is no numba", place=missing.place, remedy=remedy)
    for variant in rows:
        if variant.name == name:
            if variant.available:
                return variant
            fact = f"{name!r} cannot run: this machine or {_env.ISA} does not allow {variant.isa}"
            raise IsaError(fact, place="variant", remedy=f"use one of {', '.join(v.name for v in usable)}")
    fact = f"{primitive} has no variant {name!r}"
    raise IsaError(fact, place="variant", remedy=f"use one of {', '.join(v.name for v in rows)}")


def isa() -> str:
    """The highest instruction set that calls use; ``numba`` where the C library is missing."""
    library = _library()
    if isinstance(library, KernelsUnavailable):
        return "numba"
    return library.text(library.c.coppice_isa_name(library.c.coppice_isa_active()))


def includes(isa: str, lower: str) -> bool:
    """Whether an instruction set has ``lower``, itself or a higher one of its architecture; ``numba`` has none."""
    library = _library()
    names = library.isa_names() if isinstance(library, Library) else []
    return isa in names and lower in names and names.index(isa) >= names.index(lower)


def status() -> Status:
    """What calls run on, and why. Raises IsaError where ``COPPICE_ISA`` is wrong."""
    library, name = _library(), isa()
    if isinstance(library, KernelsUnavailable):
        return Status(False, name, f"numba kernels: {library.fact}; remedy: {library.remedy}")
    limit = _env.isa_limit()
    return Status(True, name, f"C kernels up to {name}" + (f", limited by {_env.ISA}" if limit else ""))
