"""Which variants there are and which one runs: the library, COPPICE_ISA, and life without the library."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from coppice import kernels
from coppice.kernels import _load
from coppice.kernels._variants import includes

Python = Callable[..., "subprocess.CompletedProcess[str]"]

REPORT = """
import numpy
from coppice import kernels
kernels.matmul(kernels.Weight.sparse(numpy.eye(4, dtype=numpy.float32)), numpy.ones((4, 9), numpy.float32))
print(kernels.isa(), *(v.name for v in kernels.variants() if v.available and v.primitive == "matmul"))
"""


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These tests set ``COPPICE_ISA`` themselves, whatever it is for the others."""
    monkeypatch.delenv("COPPICE_ISA", raising=False)
    _load.load.cache_clear()
    yield
    _load.load.cache_clear()


def names(variants: list[kernels.Variant]) -> list[str]:
    return [variant.name for variant in variants]


def machine_isas() -> list[str]:
    library = _load.load()
    highest = library.c.coppice_isa_active()
    return library.isa_names()[: highest + 1]


def test_the_library_is_installed() -> None:
    """Without it all tests of C would pass over in silence; a C compiler is part of every development machine."""
    status = kernels.status()
    assert status.library, status.detail
    assert names(kernels.variants())[0] == "generic"
    assert kernels.variants()[0].available


#: All that the library knows, those that this machine lacks among them.
ISAS = _load.load().isa_names() if kernels.status().library else []


def test_the_names_of_instruction_sets() -> None:
    arm = ["neon", "neon_fp16"]
    intel = ["avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"]
    expected = {"x86_64": intel, "aarch64": arm, "arm64": arm}
    assert expected.get(platform.machine(), []) == ISAS[1:]
    assert ISAS[0] == "generic"


def test_an_instruction_set_includes_those_before_it() -> None:
    for place, isa in enumerate(ISAS):
        assert [includes(isa, other) for other in ISAS] == [before <= place for before in range(len(ISAS))]
        assert not includes(isa, "unheard of")
    assert not includes("numba", "generic")


@pytest.mark.parametrize("isa", ISAS)
def test_isa_masks_downwards(python: Python, isa: str) -> None:
    done = python(REPORT, COPPICE_ISA=isa)
    usable = machine_isas()
    if isa not in usable:
        assert done.returncode == 1
        assert "IsaError: COPPICE_ISA: this machine lacks the instruction set" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    active, *available = done.stdout.split()
    assert active == isa
    rows = [variant for variant in kernels.variants() if variant.primitive == "matmul" and variant.index >= 0]
    allowed = usable[: usable.index(isa) + 1]
    assert available == [*(row.name for row in rows if row.isa in allowed), "numba"]


@pytest.mark.parametrize("value", ["nonsense", "GENERIC", " generic", "numba"])
def test_unknown_isa_is_an_error(python: Python, value: str) -> None:
    done = python(REPORT, COPPICE_ISA=value)
    assert done.returncode == 1
    assert f"IsaError: COPPICE_ISA: no instruction set has this name: {value!r}" in done.stderr
    assert f"use one of {', '.join(ISAS)}; this machine has up to" in done.stderr


def test_empty_isa_is_unset(python: Python) -> None:
    done = python(REPORT, COPPICE_ISA="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == kernels.isa()


def test_a_masked_variant_says_so(python: Python) -> None:
    rows = [variant for variant in kernels.variants() if variant.primitive == "matmul" and variant.index >= 0]
    fastest = [variant for variant in rows if variant.available][-1]
    code = REPORT.replace("numpy.float32))\n", f"numpy.float32), variant={fastest.name!r})\n")
    done = python(code, COPPICE_ISA="generic")
    assert (done.returncode == 0) == (fastest.isa == "generic")
    if fastest.isa != "generic":
        assert f"{fastest.name!r} cannot run: this machine or COPPICE_ISA does not allow {fastest.isa}" in done.stderr


def test_importing_the_kernels_is_light(python: Python) -> None:
    done = python("import sys, coppice.kernels; print([m for m in ('torch', 'numba', 'scipy') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.usefixtures("no_library")
def test_without_the_library_numba_takes_over() -> None:
    assert set(names(kernels.variants())) == {"numba"}
    status = kernels.status()
    assert not status.library
    assert status.isa == kernels.isa() == "numba"
    assert "the C library is not installed" in status.detail
    y = kernels.matmul(kernels.Weight.sparse(np.eye(2, dtype=np.float32)), np.ones((2, 3), np.float32))
    assert np.array_equal(y, np.ones((2, 3)))
    with pytest.raises(kernels.IsaError, match="no variant 'avx2'"):
        kernels.matmul(kernels.Weight.sparse(np.eye(2, dtype=np.float32)), np.ones((2, 3), np.float32), variant="avx2")


@pytest.mark.usefixtures("no_library")
def test_without_the_library_the_isa_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPPICE_ISA", "generic")
    with pytest.raises(kernels.IsaError, match="nothing to choose from"):
        kernels.status()


@pytest.mark.usefixtures("no_library")
def test_without_library_and_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coppice.kernels._variants.has_numba", lambda: False)
    with pytest.raises(kernels.KernelsUnavailable, match="there is no numba"):
        kernels.matmul(kernels.Weight.sparse(np.eye(2, dtype=np.float32)), np.ones((2, 3), np.float32))


def test_another_abi_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original, version = _load.declarations, _load.load().c.coppice_abi_version()
    mark = f"ABI_VERSION {version}"
    _load.load.cache_clear()
    monkeypatch.setattr(_load, "declarations", lambda text: original(text.replace(mark, "ABI_VERSION 999")))
    with pytest.raises(kernels.KernelsUnavailable, match=f"version {version}, the package expects 999"):
        _load.load()
    monkeypatch.undo()
    assert _load.load().c.coppice_abi_version() == version


def test_a_file_that_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "libcoppice_kernels.so"
    path.write_text("not an ELF file")
    _load.load.cache_clear()
    monkeypatch.setattr(_load, "library_file", lambda: path)
    with pytest.raises(kernels.KernelsUnavailable, match="does not load"):
        _load.load()
    _load.load.cache_clear()
