"""Tables of Markdown, and the sections of pages that benchmarks write."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """With a line's end behind the last row."""
    columns = list(head)
    return "".join(f"| {' | '.join(row)} |\n" for row in (columns, ["---"] * len(columns), *rows))


def put(page: Path, name: str, text: str, new: str = "") -> None:
    """Replace the section ``name`` of ``page``, between its marks, by ``text``, or append it; a page that is not there
    yet begins with ``new``."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    held = page.read_text(encoding="utf-8") if page.exists() else new
    found = re.search(re.escape(begin) + ".*?" + re.escape(end), held, re.DOTALL)
    section = begin + text.rstrip("\n") + "\n" + end
    held = held[: found.start()] + section + held[found.end() :] if found else f"{held}\n{section}"
    page.write_text(held, encoding="utf-8")
