"""Names that a user typed: the nearest known one, and patterns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from coppice.core.errors import UsageError


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name nobody knows, suggesting the nearest of ``known``."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"there are no {kind} names here"
    return UsageError(f"no {kind} is called {name!r}", place=name, remedy=hint)
