"""One torch thread: the models are too small for more, and bits must repeat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coppice.api.demo import one_thread


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
