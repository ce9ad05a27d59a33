"""What every test gets: one torch thread a worker, fixed seeds, a hypothesis profile, and data where there is some."""

from __future__ import annotations

import os
import random
import sys
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: workers share the machine's cores, and more threads than cores make every test slower.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
# For `make fuzz-graphs`: 16 times the examples, 2,080 random networks and 1,600 hierarchies of segments in
# tests/properties; failures stay in .hypothesis.
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=1600, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def _seeds(request: pytest.FixtureRequest) -> None:
    """Seed every generator from the test's own name, so that a test does not depend on which ones ran before it."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries under test draw from the global generator
    if "torch" in sys.modules:  # a test that imports torch itself finds torch's own fixed default seed
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets and trained checkpoints that are too large for the repository, kept beside it."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data folder beside the repository")
    return folder
