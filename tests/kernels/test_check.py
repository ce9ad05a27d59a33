"""The C check program, built and run as a C developer would: under the address and undefined-behaviour sanitizers, and
for 64-bit Arm under emulation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLCHAIN = ROOT / "cmake" / "aarch64-linux-gnu.cmake"


def run(command: list[str], **variables: str) -> str:
    """What the command printed; it must succeed."""
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, *options: str) -> None:
    run(["cmake", "-S", str(ROOT), "-B", str(folder), *options])
    run(["cmake", "--build", str(folder), "--parallel", "2"])


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("cmake") is None or not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")),
    reason="needs cmake and a C compiler",
)
def test_check_program_under_sanitizers(tmp_path: Path) -> None:
    build(tmp_path, "-DCOPPICE_SANITIZE=ON", "-DCOPPICE_EMULATE_FP16=ON")
    run(["ctest", "--test-dir", str(tmp_path), "--output-on-failure", "--no-tests=error"])


@pytest.mark.slow
@pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("cmake", "aarch64-linux-gnu-gcc", "qemu-aarch64")),
    reason="needs cmake, a cross compiler for 64-bit Arm and qemu (see `make check-arm`)",
)
def test_check_program_on_arm(tmp_path: Path) -> None:
    """On a processor without half-precision arithmetic and on one with it."""
    build(tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}")
    for processor, isa in (("cortex-a53", "neon"), ("max", "neon_fp16")):
        printed = run(["ctest", "--test-dir", str(tmp_path), "--verbose", "--no-tests=error"], QEMU_CPU=processor)
        assert f"0 failed, up to {isa}\n" in printed
