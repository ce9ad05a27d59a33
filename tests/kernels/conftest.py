"""Shared by the tests of the kernels: running a snippet in a fresh interpreter, with or without the C library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from coppice.kernels import _load
from coppice.kernels._errors import KernelsUnavailable


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``python(code, COPPICE_ISA="avx2")`` runs code in a new process and returns it, finished."""

    def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "COPPICE_ISA"} | variables
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the package had been installed without a C compiler."""

    def missing() -> None:
        raise KernelsUnavailable("the C library is not installed", place="coppice/kernels/_lib", remedy="install again")

    _load.load.cache_clear()
    monkeypatch.setattr(_load, "library_file", missing)
    yield
    _load.load.cache_clear()
