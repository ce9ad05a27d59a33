"""The C package: what `cmake --install` puts where, the example that is built with it, and what the library exports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import coppice
from coppice import kernels
from coppice.kernels import _load

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "kernels" / "abi.h"

needs_cmake = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs cmake and a C compiler called cc"
)


def run(*command: str | Path, **variables: str) -> str:
    """What the command printed; it must succeed."""
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["shared", "static"])
def prefix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the C package is installed; the tree has been moved after the installation."""
    folder = tmp_path_factory.mktemp(request.param)
    shared = "ON" if request.param == "shared" else "OFF"
    run("cmake", "-S", ROOT, "-B", folder / "build", f"-DBUILD_SHARED_LIBS={shared}", "-DCMAKE_INSTALL_LIBDIR=lib")
    run("cmake", "--build", folder / "build", "--target", "coppice_kernels")
    run("cmake", "--install", folder / "build", "--prefix", folder / "first")
    return (folder / "first").rename(folder / "moved")


def expect_example(printed: str) -> None:
    version, isa = _load.load().c.COPPICE_ABI_VERSION, kernels.isa()
    assert f"coppice kernels: ABI {version}, running on {isa}\n" in printed
    assert re.search(r"checksum (\d+\.\d+), of a plain loop \1\n", printed)


@pytest.mark.slow
@needs_cmake
def test_installed_files(prefix: Path) -> None:
    found = {path.relative_to(prefix).as_posix() for path in prefix.rglob("*") if not path.is_dir()}
    library = {"lib/libcoppice_kernels.a"}
    if prefix.parent.name.startswith("shared"):
        version = _load.load().c.COPPICE_ABI_VERSION
        library = {"lib/libcoppice_kernels.so", f"lib/libcoppice_kernels.so.{version}"}
    parts = ("Config", "ConfigVersion", "Targets", "Targets-release")
    package = {f"lib/cmake/coppice/coppice{part}.cmake" for part in parts}
    assert found == library | package | {"include/coppice/kernels.h", "lib/pkgconfig/coppice.pc"}
    assert (prefix / "include/coppice/kernels.h").read_bytes() == HEADER.read_bytes()


@pytest.mark.slow
@needs_cmake
def test_example_with_cmake(prefix: Path, tmp_path: Path) -> None:
    run("cmake", "-S", ROOT / "examples" / "c", "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path)
    expect_example(run(tmp_path / "sparse_layer"))


@pytest.mark.slow
@needs_cmake
@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_example_with_pkg_config(prefix: Path, tmp_path: Path) -> None:
    program, source = tmp_path / "sparse_layer", ROOT / "examples" / "c" / "sparse_layer.c"
    search = {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    static = [] if prefix.parent.name.startswith("shared") else ["--static"]
    flags = run("pkg-config", "--cflags", "--libs", *static, "coppice", **search).split()
    run("cc", "-std=c11", "-Wall", "-Wextra", "-Werror", source, "-o", program, *flags)
    expect_example(run(program, LD_LIBRARY_PATH=str(prefix / "lib")))
    assert run("pkg-config", "--modversion", "coppice", **search).strip() == coppice.__version__


@pytest.mark.slow
@needs_cmake
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_symbols_of_the_installed_library(prefix: Path) -> None:
    """In the archive all external names begin so, since nothing hides them from the program."""
    shared = prefix.parent.name.startswith("shared")
    name = "libcoppice_kernels.so" if shared else "libcoppice_kernels.a"
    defined = symbols(prefix / "lib" / name, *(["-D"] if shared else ["-g"]))
    assert all(symbol.startswith("coppice_") for symbol in defined), defined
    assert declared() <= defined


@pytest.mark.skipif(shutil.which("nm") is None or not kernels.status().library, reason="needs nm and the C library")
def test_exported_symbols() -> None:
    assert symbols(_load.library_file(), "-D") == declared()


def symbols(library: Path, option: str) -> set[str]:
    """The names that a library defines."""
    lines = (line.split() for line in run("nm", option, "--defined-only", library).splitlines())
    return {line[2] for line in lines if len(line) == 3}


def declared() -> set[str]:
    """The functions of the header."""
    return set(re.findall(r"^COPPICE_API .*?\*?(\w+)\(", HEADER.read_text(), re.MULTILINE))


@pytest.mark.parametrize(("compiler", "language", "standard"), [("cc", "c", "c11"), ("c++", "c++", "c++17")])
def test_header_stands_alone(tmp_path: Path, compiler: str, language: str, standard: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    run(compiler, "-x", language, f"-std={standard}", *strict, "-c", HEADER, "-o", tmp_path / "header.o")
