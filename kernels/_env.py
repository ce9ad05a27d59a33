"""The environment variables that the kernels obey; nothing else under ``kernels`` reads the environment.

``COPPICE_ISA``: the highest instruction set that may be used (``generic``, on x86-64 ``avx2``, ``avx512``,
``avx512_vnni``, ``avx512_bf16``, ``avx512_fp16``, ``amx_int8``, ``amx_bf16``, on 64-bit Arm ``neon``, ``neon_fp16``);
unset or empty: the best one of the machine. Read once, when the C library is loaded.
"""

from __future__ import annotations

import os

ISA = "COPPICE_ISA"


def isa_limit() -> str | None:
    """The value of ``COPPICE_ISA``, or None where it is unset or empty."""
    return os.environ.get(ISA) or None
