"""What tests of the commands get: a way to run them, and the example models."""

from __future__ import annotations

from pathlib import Path

import pytest

from clikit import Coppice, runner


@pytest.fixture
def coppice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Coppice:
    """``coppice("explain", "model.py:build")`` runs the command in a folder of its own, where ``model.py`` lies."""
    return runner(tmp_path, monkeypatch, capsys)


@pytest.fixture
def examples() -> Path:
    """The folder of example models."""
    return Path(__file__).resolve().parents[2] / "examples"
