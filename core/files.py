"""Files that are whole or absent: temporary file, fsync, rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coppice.core.errors import UsageError


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, and rename it into place."""
    _make_parent(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for UTF-8 text."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A folder that appears at ``path`` complete when the block ends, and not at all when it raises."""
    _make_parent(path)
    if path.exists() and not path.is_dir():
        raise UsageError(
            "there is a file of this name", place=str(path), remedy="give another folder, or move the file away"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        inside = Path(temporary) / "new"
        inside.mkdir()
        yield inside
        for file in inside.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        _sync_folder(inside)
        old = Path(temporary) / "old"
        if path.exists():
            path.replace(old)
        try:
            inside.replace(path)
        except BaseException:
            if old.exists():
                old.replace(path)
            raise
    _sync_folder(path.parent)


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            "a file stands where a folder is needed", place=str(path.parent), remedy="give a path inside a folder"
        ) from None


def _sync_folder(path: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
