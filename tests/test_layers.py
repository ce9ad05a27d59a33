"""The arrows between the folders, read from the sources: who imports whom, and who reads the environment."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ABOVE_CORE = {"frontends", "passes", "backends"}
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "kernels": set(),
    "frontends": {"core"},
    "passes": {"core"},
    "backends": {"core"},
    "backends/cpu": {"core", "kernels"},
    "api": {"core", "kernels"} | ABOVE_CORE,
    "cli": {"core", "kernels", "api"} | ABOVE_CORE,
}
FOLDERS = {layer for layer in MAY_IMPORT if "/" not in layer}
TESTS = {"tests", "zoo", "conftest"}  # the folder itself, and what pytest makes importable from it
READS_ENVIRONMENT = {"core/env.py", "kernels/_env.py"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}


def bound_to(module: str, tree: ast.Module) -> set[str]:
    """Return the other names that ``module`` is imported under."""
    aliases = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {alias.asname for alias in aliases if alias.name == module and alias.asname is not None}


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) for every import, wherever it stands; relative ones begin with a dot.

    ``coppice.name`` counts as the import of that name: it is what makes the root package fetch it.
    """
    root = {"coppice"} | bound_to("coppice", tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, "." * node.level + ".".join(filter(None, (node.module, alias.name)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in root:
            yield node.lineno, f"coppice.{node.attr}"


def homes(root: Path) -> dict[str, str]:
    """Return the lazy names of the root package and the module that each comes from."""
    for node in ast.parse((root / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    return {}


def import_fault(name: str, layer: str, lazy: dict[str, str]) -> str | None:
    """Say what is wrong with the import of ``name`` in ``layer``, or return None."""
    first, *rest = name.split(".")
    if first == "":
        return f"relative import {name}; write coppice.<folder>..."
    if first in FOLDERS:
        return f"import of {name}; write coppice.{name}"
    if first in TESTS or name.startswith("coppice.tests"):
        return f"import of {name}; nothing imports the tests"
    if first != "coppice":
        return None
    if not rest or rest[0] == "__version__":
        return f"kernels imports {name}; it may import nothing of ours" if layer == "kernels" else None
    target = lazy.get(rest[0], name).split(".")[1]
    if target == layer.split("/")[0] or target in MAY_IMPORT[layer]:
        return None
    allowed = ", ".join(sorted(MAY_IMPORT[layer])) or "nothing of ours"
    return f"{layer} imports {name}; it may import {allowed}"


def environment_reads(tree: ast.Module) -> Iterator[int]:
    """Yield the lines that reach for the environment, through whatever name ``os`` was imported under."""
    names = {"os"} | bound_to("os", tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            reached = {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in names:
            reached = {node.attr}
        else:
            continue
        if reached & ENVIRONMENT:
            yield node.lineno


def faults(root: Path) -> list[str]:
    """Return every breach under ``root`` as ``file:line: what``."""
    lazy = homes(root)
    found = []
    for folder in sorted(FOLDERS):
        for path in sorted((root / folder).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            layer = "/".join(file.split("/")[:2])
            layer = layer if layer in MAY_IMPORT else folder
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=file)
            for line, name in imports(tree):
                fault = import_fault(name, layer, lazy)
                if fault is not None:
                    found.append(f"{file}:{line}: {fault}")
            if file not in READS_ENVIRONMENT:
                found += [f"{file}:{line}: the environment is read in core/env.py" for line in environment_reads(tree)]
    return found


def test_the_arrows_hold() -> None:
    assert faults(ROOT) == []


def test_every_folder_is_there_and_packaged() -> None:
    packaged = (ROOT / "pyproject.toml").read_text()
    for folder in FOLDERS:
        assert (ROOT / folder / "__init__.py").is_file()
        assert f'"coppice/{folder}" = "{folder}"' in packaged


def plant(root: Path, file: str, source: str) -> None:
    (root / "__init__.py").write_text('_HOMES = {"trace": "coppice.frontends.torch", "Graph": "coppice.core.graph"}\n')
    path = root / file
    path.parent.mkdir(parents=True)
    path.write_text(source)


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("core/a.py", "import coppice.passes.prune", "core imports coppice.passes.prune"),
        ("core/a.py", "from coppice import kernels", "core imports coppice.kernels"),
        ("core/a.py", "from coppice import trace", "core imports coppice.trace"),
        ("core/a.py", "def f():\n    from coppice.api import x", "core imports coppice.api"),
        ("core/a.py", "if TYPE_CHECKING:\n    from coppice.cli.main import app", "core imports coppice.cli"),
        ("core/a.py", "importlib.import_module('coppice.backends.onnx')", "core imports coppice.backends"),
        ("core/a.py", "__import__('coppice.backends')", "core imports coppice.backends"),
        ("core/ops/a.py", "from . import table", "relative import"),
        ("core/ops/a.py", "from ..graph import Graph", "relative import"),
        ("core/a.py", "import core.graph", "write coppice.core.graph"),
        ("core/a.py", "from passes import prune", "write coppice.passes"),
        ("core/a.py", "import coppice\ncoppice.trace(model)", "core/a.py:2: core imports coppice.trace"),
        ("core/a.py", "import coppice as c\nc.passes.prune", "core/a.py:2: core imports coppice.passes"),
        ("api/a.py", "from tests.conftest import shared_data", "nothing imports the tests"),
        ("api/a.py", "from coppice.tests import x", "nothing imports the tests"),
        ("api/a.py", "from zoo.case import Case", "nothing imports the tests"),
        ("api/a.py", "from coppice.cli import main", "api imports coppice.cli"),
        ("passes/lower/a.py", "from coppice.kernels import load", "passes imports coppice.kernels"),
        ("passes/a.py", "from coppice.frontends import torch", "passes imports coppice.frontends"),
        ("frontends/a.py", "from coppice.backends.cpu import run", "frontends imports coppice.backends"),
        ("backends/mcu/a.py", "from coppice.kernels import load", "backends imports coppice.kernels"),
        ("kernels/a.py", "from coppice.core.errors import CoppiceError", "kernels imports coppice.core"),
        ("kernels/a.py", "from coppice import __version__", "kernels imports coppice.__version__"),
        ("kernels/a.py", "import coppice", "kernels imports coppice"),
        ("core/a.py", "import os\nos.environ['X']", "core/a.py:2: the environment"),
        ("core/a.py", "import os as system\nsystem.getenv('X')", "core/a.py:2: the environment"),
        ("core/a.py", "from os import environ", "core/a.py:1: the environment"),
        ("kernels/env.py", "import os\nos.environ['X']", "the environment"),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, file: str, source: str, fault: str) -> None:
    plant(tmp_path, file, source)
    found = faults(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f"{file}:")
    assert fault in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/a.py", "import os\nimport numpy\nfrom coppice.core.graph import Graph\nos.path.join('a', 'b')"),
        ("core/a.py", "from coppice import __version__"),
        ("core/a.py", "import coppice\ncoppice.__version__, coppice.Graph"),
        ("core/a.py", "import onnx.backend\nself.environ = model.environ"),
        ("core/env.py", "import os\nos.environ.get('COPPICE_CACHE')"),
        ("kernels/_env.py", "import os\nos.environ.get('COPPICE_ISA')"),
        ("kernels/_load.py", "from coppice.kernels._env import isa"),
        ("passes/a.py", "from coppice import Graph\nfrom coppice.passes.space import build"),
        ("backends/cpu/a.py", "from coppice.kernels import load\nfrom coppice.backends.cpu.plan import x"),
        ("api/a.py", "from coppice.kernels import load\nfrom coppice.passes.prune import one_shot"),
        ("cli/a.py", "from coppice import trace\nfrom coppice.api.extract import extract"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, file: str, source: str) -> None:
    plant(tmp_path, file, source)
    assert faults(tmp_path) == []
