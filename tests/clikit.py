"""Runs the command line in this process, in a folder with a small model file; for tests of the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coppice.cli.main import run

MODEL = """
import torch
from torch import nn

print("the user's own print")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.out = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv1(x)))
        return self.out(torch.relu(self.conv2(x)).mean((2, 3)))


def build():
    torch.manual_seed(0)
    return Net().eval(), torch.randn(2, 3, 8, 8)


def bare():
    return Net()


def needs(width):
    return Net()


def fails():
    raise ValueError("no checkpoint here")


def leaves():
    raise SystemExit(7)


def number():
    return 3


network = Net()
value = 3
"""


@dataclass(frozen=True)
class Outcome:
    """What one command did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """stdout as the one JSON object that it must be."""
        data: dict[str, Any] = json.loads(self.out)
        return data


Coppice = Callable[..., Outcome]


def runner(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Coppice:
    """``call("explain", "model.py:build")`` runs the command in ``folder``, where ``model.py`` lies."""
    (folder / "model.py").write_text(MODEL)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def call(*args: str | Path) -> Outcome:
        capsys.readouterr()
        code = run([str(arg) for arg in args])
        for name in {n for n in sys.modules if n == "model" or n.startswith("coppice_target_")} - known:
            del sys.modules[name]
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call
