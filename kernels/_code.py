"""Straight-line code of a sparse weight, in memory that can be executed and not written."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from weakref import WeakKeyDictionary

import numpy as np

from coppice.kernels._call import address, type_number
from coppice.kernels._errors import KernelError
from coppice.kernels._format import ARRAYS
from coppice.kernels._load import Library, load

if TYPE_CHECKING:
    from coppice.kernels._weight import Weight


@dataclass(frozen=True, eq=False)
class Code:
    """Machine code of one weight, mapped; it ends with the object."""

    memory: mmap.mmap
    address: int

    @property
    def nbytes(self) -> int:
        """Bytes of code and values."""
        return len(self.memory)


def held_by_c(library: Library, weight: Weight, held: Any) -> None:
    """Fill ``coppice_weight`` ``held`` with bare addresses of what ``weight`` keeps alive."""
    from coppice.kernels._weight import LAYOUTS

    held.layout, held.type = list(LAYOUTS).index(weight.layout), type_number(weight.type)
    held.rows, held.cols, held.slab, held.height = weight.rows, weight.cols, weight.slab, weight.height
    held.entries, held.kept, held.group = weight.entries, weight.kept, weight.group
    for name in ARRAYS:
        setattr(held, name, address(getattr(weight, name)))
    held.code = library.ffi.NULL if weight.code is None else library.ffi.cast("void *", weight.code.address)


_HELD: WeakKeyDictionary[Weight, tuple[Library, Any]] = WeakKeyDictionary()


def as_c(library: Library, weight: Weight) -> Any:
    """The ``coppice_weight`` of a weight, which must outlive it; made once."""
    found = _HELD.get(weight)
    if found is None or found[0] is not library:
        held = library.ffi.new("coppice_weight *")
        held_by_c(library, weight, held)
        found = _HELD[weight] = library, held
    return found[1][0]


def compile_code(weight: Weight, cache: Path | None) -> Code:
    """The code of ``weight``, from ``cache`` where it has been compiled before.

    It goes through a file, so that no page is ever writable and executable at once.

    Raises:
        KernelError: the library has no code for this layout or this machine, or the system lets no new code run.
        KernelsUnavailable: there is no C library.
    """
    library = load()
    held = library.ffi.new("coppice_weight *")
    held_by_c(library, weight, held)
    try:
        if cache is None:
            with tempfile.TemporaryFile() as file:
                file.write(_written(library, held))
                file.flush()
                return _mapped(library, file)
        path = cache / f"{_digest(library, weight)}.code"
        if not path.exists() or path.stat().st_size != library.c.coppice_code_bytes(held):
            _put(path, _written(library, held))
        with path.open("rb") as file:
            return _mapped(library, file)
    except OSError as error:
        fact = f"the system lets no new code run: {os.strerror(error.errno or 0)}"
        raise KernelError(fact, place="code", remedy="choose a folder that is not mounted noexec") from error


def _written(library: Library, held: Any) -> bytes:
    c, ffi = library.c, library.ffi
    size = c.coppice_code_bytes(held)
    if size < 0:
        raise KernelError(library.status_text(size), place="code", remedy="use the weight without: code is only faster")
    room = np.zeros(size + 64, np.uint8)
    block = room[-room.ctypes.data % 64 :][:size]
    status = c.coppice_code_write(held, ffi.cast("void *", block.ctypes.data), size)
    assert status == c.COPPICE_OK, library.status_text(status)
    return block.tobytes()


def _mapped(library: Library, file: BinaryIO) -> Code:
    memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    return Code(memory, int(library.ffi.cast("uintptr_t", library.ffi.from_buffer(memory))))


def _digest(library: Library, weight: Weight) -> str:
    """Of everything that the code depends on: the weight, and the library that writes it."""
    facts = (library.digest, weight.rows, weight.cols, weight.slab, weight.height, weight.type)
    digest = hashlib.sha256(repr(facts).encode())
    for array in (weight.starts, weight.columns, weight.values, weight.scales):
        digest.update(b"none" if array is None else array.tobytes())
    return digest.hexdigest()


def _put(path: Path, content: bytes) -> None:
    """All of it or nothing, whoever else writes the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
