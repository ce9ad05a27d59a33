"""Loads the C library through cffi in ABI mode: no CPython ABI, so one wheel serves every Python 3."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import cffi

from coppice.kernels import _env
from coppice.kernels._errors import IsaError, KernelsUnavailable

_BUILD = "install coppice again where a C compiler is found (pip install coppice, or `make setup` in a checkout)"


@dataclass(frozen=True, eq=False)
class Library:
    """The loaded library: ``c`` holds its functions and constants, ``ffi`` makes its structures."""

    ffi: Any
    c: Any
    file: Path
    _arguments: dict[str, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def digest(self) -> str:
        """Of the library's file: what it writes may be another's after an update."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def arguments(self, primitive: str) -> tuple[Any, Any]:
        """The type ``coppice_<primitive>_args *``, and the function that says how much scratch they need, or None."""
        found = self._arguments.get(primitive)
        if found is None:
            scratch = getattr(self.c, f"coppice_{primitive}_scratch", None)
            found = self._arguments[primitive] = self.ffi.typeof(f"coppice_{primitive}_args *"), scratch
        return found

    def text(self, pointer: Any) -> str:
        """A C string of the library as a str."""
        return str(self.ffi.string(pointer).decode())

    def status_text(self, status: int) -> str:
        """What a status means, in words."""
        return self.text(self.c.coppice_status_text(status))

    def isa_names(self) -> list[str]:
        """All instruction sets that the library knows by name, lowest first."""
        names: list[str] = []
        while (pointer := self.c.coppice_isa_name(len(names))) != self.ffi.NULL:
            names.append(self.text(pointer))
        return names

    def limit_isa(self, name: str, place: str) -> None:
        """Allows no instruction set above ``name`` in this process; ``place`` says who asked.

        Raises:
            IsaError: there is none of this name, or the machine lacks it.
        """
        status = self.c.coppice_isa_limit(name.encode())
        if status == self.c.COPPICE_OK:
            return
        best = self.text(self.c.coppice_isa_name(self.c.coppice_isa_active()))
        raise IsaError(
            f"{self.status_text(status)}: {name!r}",
            place=place,
            remedy=f"use one of {', '.join(self.isa_names())}; this machine has up to {best}",
        )


def declarations(header: str) -> str:
    """The part of ``abi.h`` between its cdef marks, without the export macro: what ``ffi.cdef`` reads."""
    found = re.search(r"/\* cdef begin \*/(.*)/\* cdef end \*/", header, re.DOTALL)
    if found is None:
        raise KernelsUnavailable("the cdef marks are missing", place="coppice/kernels/abi.h", remedy=_BUILD)
    return found.group(1).replace("COPPICE_API ", "")


def library_file() -> Path:
    """Where the installed C library is.

    Raises:
        KernelsUnavailable: it is not there.
    """
    # Not Path(__file__): an editable install keeps sources and library apart.
    folder = files("coppice.kernels").joinpath("_lib")
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.name.partition(".")[0] in ("libcoppice_kernels", "coppice_kernels"):
                return Path(str(entry))
    raise KernelsUnavailable("the C library is not installed", place="coppice/kernels/_lib", remedy=_BUILD)


@lru_cache(maxsize=1)
def load() -> Library:
    """The C library, loaded on the first call, with ``COPPICE_ISA`` applied.

    Raises:
        KernelsUnavailable: it is missing, cannot be opened, or has another ABI version than ``abi.h``.
        IsaError: ``COPPICE_ISA`` names an instruction set that is unknown or that this machine lacks.
    """
    path = library_file()  # first: where it is missing, every call asks again
    ffi = cffi.FFI()
    ffi.cdef(declarations(files("coppice.kernels").joinpath("abi.h").read_text(encoding="utf-8")))
    try:
        c = ffi.dlopen(str(path))
        version = c.coppice_abi_version()
    except (OSError, AttributeError) as error:
        raise KernelsUnavailable(f"the C library does not load: {error}", place=path.name, remedy=_BUILD) from error
    if version != c.COPPICE_ABI_VERSION:
        fact = f"the C library has ABI version {version}, the package expects {c.COPPICE_ABI_VERSION}"
        raise KernelsUnavailable(fact, place=path.name, remedy=_BUILD)
    library = Library(ffi, c, path)
    limit = _env.isa_limit()
    if limit is None:
        c.coppice_isa_limit(ffi.NULL)
    else:
        library.limit_isa(limit, _env.ISA)
    return library
