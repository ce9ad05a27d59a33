"""The C check program, built and run as a C developer would, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("cmake") is None or not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")),
    reason="needs cmake and a C compiler",
)
def test_check_program_under_sanitizers(tmp_path: Path) -> None:
    build = str(tmp_path)
    commands = [
        ["cmake", "-S", str(ROOT), "-B", build, "-DCOPPICE_SANITIZE=ON"],
        ["cmake", "--build", build, "--parallel", "2"],
        ["ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error"],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
