"""Inputs for ``fuzz_weight.c`` to begin with, of each layout, type, and height or group: ``fuzz_seeds.py FOLDER``."""

from __future__ import annotations

import random
import sys
from itertools import product
from pathlib import Path


def seeds() -> list[bytes]:
    """The sizes as ``random_sizes`` reads them, valid ones, and content of which the rest is drawn."""
    content = random.Random(0)
    return [
        bytes([layout, kind, size, 33, 90, 1, *content.randbytes(1), size, *content.randbytes(1), 0])
        + content.randbytes(24)
        for layout, kind, size in product(range(5), range(4), range(4))
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (folder / f"seed-{number}").write_bytes(seed)
