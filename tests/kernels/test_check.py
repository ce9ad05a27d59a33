"""The C check program, built and run as a C developer would: under the address and undefined-behaviour sanitizers, and
for 64-bit Arm under emulation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
    """One problem in four; `make check-c` does them all."""
    build(tmp_path, "-DCOPPICE_SANITIZE=ON", "-DCOPPICE_EMULATE=ON", "-DCOPPICE_CHECK_THIN=4")
    run(["ctest", "--test-dir", str(tmp_path), "--output-on-failure", "--no-tests=error"])


@pytest.mark.slow
@pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("cmake", "aarch64-linux-gnu-gcc", "qemu-aarch64")),
    reason="needs cmake, a cross compiler for 64-bit Arm and qemu (see `make check-arm`)",
)
def test_check_program_on_arm(tmp_path: Path) -> None:
    """On a processor without half-precision arithmetic and on one with it; `make check-arm` does all problems."""
    build(tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}", "-DCOPPICE_CHECK_THIN=16")
    for processor, isa in (("cortex-a53", "neon"), ("max", "neon_fp16")):
        printed = run(["ctest", "--test-dir", str(tmp_path), "--verbose", "--no-tests=error"], QEMU_CPU=processor)
        assert f"0 failed, up to {isa}\n" in printed


#: The least that libFuzzer links.
EMPTY = "int LLVMFuzzerTestOneInput(void); int LLVMFuzzerTestOneInput(void) { return 0; }"


def clang_with_fuzzer() -> str | None:
    """A clang that can link libFuzzer, which Debian packs apart from it."""
    for name in ("clang", *(f"clang-{version}" for version in range(22, 13, -1))):
        command = [name, "-fsanitize=fuzzer,address", "-x", "c", "-", "-o", "/dev/null"]
        if shutil.which(name) and subprocess.run(command, input=EMPTY.encode(), capture_output=True).returncode == 0:
            return name
    return None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
@pytest.mark.skipif(
    os.environ.get("COPPICE_TEST_FUZZER") != "1",
    reason="compiles the library with clang for five minutes: COPPICE_TEST_FUZZER=1, or `make fuzz-weights`",
)
def test_fuzzer_of_weights(tmp_path: Path) -> None:
    """Half an hour of it is `make fuzz-weights`."""
    clang = clang_with_fuzzer()
    if clang is None:
        pytest.skip("needs clang with libFuzzer (Debian: apt install clang-14 libclang-rt-14-dev)")
    run(["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-DCOPPICE_FUZZ=ON", f"-DCMAKE_C_COMPILER={clang}"])
    run(["cmake", "--build", str(tmp_path), "--parallel", "2", "--target", "fuzz_weight"])
    run([sys.executable, str(ROOT / "tests" / "kernels" / "fuzz_seeds.py"), str(tmp_path / "seeds")])
    options = ["-runs=3000", "-max_total_time=20", "-max_len=512", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    run([str(tmp_path / "fuzz_weight"), *options, str(tmp_path / "seeds")])
