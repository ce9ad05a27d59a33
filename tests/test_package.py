"""The installed package as its users meet it: what importing it costs, which names it offers, what it ships."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import inspect
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import coppice

ROOT = Path(__file__).resolve().parents[1]
NAMES = [name for name in coppice.__all__ if name != "__version__"]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_in_no_dependency(tmp_path: Path) -> None:
    code = (
        "import json, sys; before = set(sys.modules); import coppice; print(json.dumps([*(set(sys.modules) - before)]))"
    )
    loaded = {name.split(".")[0] for name in json.loads(run(sys.executable, "-c", code, cwd=tmp_path))}
    installed = {name for name in loaded - {"coppice"} if name not in sys.stdlib_module_names and name[0] != "_"}
    assert "coppice" in loaded
    assert installed == set()  # torch above all: it costs seconds


@pytest.mark.parametrize("name", NAMES)
def test_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(coppice, name)
    home = coppice._HOMES[name]
    assert value is getattr(importlib.import_module(home), name)
    text = value.__doc__ or ""
    assert len(text.split()) >= 3
    assert not text.startswith(f"{name}("), "the docstring that dataclasses write says nothing"
    assert inspect.getmodule(value) is not None


def test_public_names_agree() -> None:
    """Type checkers read the imports under TYPE_CHECKING, Python reads _HOMES; both must say the same."""
    tree = ast.parse(Path(coppice.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    checked = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert checked == coppice._HOMES
    assert dir(coppice) == sorted(coppice.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prunee'"):
        coppice.prunee  # noqa: B018


def test_version_matches_the_installed_metadata() -> None:
    assert importlib.metadata.version("coppice") == coppice.__version__


def test_types_are_shipped() -> None:
    assert importlib.resources.files("coppice").joinpath("py.typed").is_file()


def test_command_line_prints_the_version(tmp_path: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "coppice"
    assert run(script, "--version", cwd=tmp_path).split() == ["coppice", coppice.__version__]
