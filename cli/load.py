"""From ``path/to/file.py:function`` to a module and its example inputs, with a useful error for each slip."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from coppice.core.errors import CoppiceError, UsageError

if TYPE_CHECKING:
    from torch import nn

FORM = "write path/to/file.py:function or package.module:function"


def load_model(target: str, inputs: Any = None) -> tuple[nn.Module, Any]:
    """The module that ``target`` names or builds, and its example inputs; ``inputs``, if given, replace the latter.

    Runs the user's code. Raises `UsageError` for whatever goes wrong in finding, importing or calling it.
    """
    from torch import nn

    home, _, attribute = target.rpartition(":")
    if not home or not attribute:
        raise UsageError("it names no function", place=target, remedy=_which(target))
    module = _from_file(Path(home)) if home.endswith(".py") or "/" in home else _from_package(home)
    built = _build(_find(module, attribute, target), target, _file_of(module))
    pair = isinstance(built, (tuple, list)) and len(built) == 2
    model, own = built if pair else (built, None)
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"it returned {_kind(built)}",
            place=target,
            remedy="return a torch.nn.Module, or (module, example_inputs)",
        )
    chosen = own if inputs is None else inputs
    if chosen is None:
        raise UsageError(
            "there are no example inputs",
            place=target,
            remedy="return (module, example_inputs), or pass --input SHAPE, say --input 1x3x32x32",
        )
    return model, chosen


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of ({', '.join(type(v).__name__ for v in value[:4])})"
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _which(target: str) -> str:
    """What a target without a function may have meant."""
    path = Path(target.rstrip(":"))
    if path.suffix == ".py" and path.is_file():
        names = _functions(path)
        return f"write {path}:{names[0]}" if names else f"{path} defines no function; {FORM}"
    return FORM


def _functions(path: Path) -> list[str]:
    """The functions that a file defines, as far as it parses, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return []
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


# ---- importing -----------------------------------------------------------------------------------------------------


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(_no_file(path), place=str(path), remedy=_near_file(path))
    spec = importlib.util.spec_from_file_location(f"coppice_target_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError("it is no Python file", place=str(path), remedy=FORM)
    _importable(path.resolve().parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and typing look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _raised("importing it", error, str(path)) from error
    return module


def _no_file(path: Path) -> str:
    return "it is a folder, not a file" if path.is_dir() else "there is no such file"


def _near_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder}, seen from {Path.cwd()}"
    names = [p.name for p in folder.iterdir() if p.suffix == ".py"]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"did you mean {folder / near[0]}?" if near else FORM


def _from_package(name: str) -> ModuleType:
    _importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(f"{missing}."):  # something that it imports
            raise _raised("importing it", error, name) from error
        path = Path(*name.split(".")).with_suffix(".py")
        remedy = f"did you mean {path}?" if path.is_file() else f"{FORM}; modules are found from {Path.cwd()}"
        raise UsageError(f"there is no module {missing!r}", place=name, remedy=remedy) from None
    except (Exception, SystemExit) as error:
        raise _raised("importing it", error, name) from error


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _file_of(module: ModuleType) -> str:
    return str(getattr(module, "__file__", "") or "")


# ---- calling -------------------------------------------------------------------------------------------------------


def _find(module: ModuleType, attribute: str, target: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            own = [n for n in known if getattr(vars(found)[n], "__module__", "") == module.__name__] or known
            near = difflib.get_close_matches(part, own, n=3, cutoff=0.4) or own[:5]
            hint = f"did you mean {' or '.join(near)}?" if near else "it defines no functions"
            raise UsageError(f"it has no {part!r}", place=target, remedy=hint)
        found = getattr(found, part)
    return found


def _build(found: Any, target: str, file: str) -> Any:
    from torch import nn

    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UsageError(
            f"it is {_kind(found)}, not a function", place=target, remedy="name a function that returns the module"
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        remedy = "name a function without required arguments: def build(): return Net(width=64), example_inputs"
        raise UsageError(f"it cannot be called without arguments: {error}", place=target, remedy=remedy) from None
    except ValueError:  # no signature: calling it will tell
        pass
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise _raised("calling it", error, file or target) from error


def _raised(what: str, error: BaseException, file: str) -> CoppiceError:
    """The user's exception as one of ours, at the deepest line of the user's own file."""
    lines = str(error).strip().splitlines()
    everything = traceback.extract_tb(error.__traceback__)
    frames = [f for f in everything if f.filename.endswith(file)]
    frames = frames or [f for f in everything if Path(f.filename).is_relative_to(Path.cwd())]
    where = f"{frames[-1].filename}:{frames[-1].lineno} ({(frames[-1].line or '').strip()})" if frames else file
    if isinstance(error, SyntaxError):
        where = f"{error.filename or file}:{error.lineno}"
        lines = [error.msg]
    fact = f"{what} raised {type(error).__name__}" + (f": {lines[0][:300]}" if lines else "")
    return UsageError(fact, place=where, remedy="make it run in Python first; --debug shows the whole traceback")
