"""All models by key. Listing them imports none of timm, torchvision and transformers; building one does."""

from __future__ import annotations

import importlib

from model_coverage import peers
from model_coverage.entry import Entry
from zoo.hf import transformers

SOURCES = ("hand-written", "transformers", "timm", "torchvision")
MODULES = {
    "hand-written": "from_zoo",
    "transformers": "from_transformers",
    "timm": "from_timm",
    "torchvision": "from_torchvision",
}


def entries(source: str) -> dict[str, Entry]:
    """The models of one source by key."""
    module = importlib.import_module(f"model_coverage.{MODULES[source]}")
    found: dict[str, Entry] = {}
    for entry in module.ENTRIES:
        if entry.key in found:
            raise ValueError(f"two models are called {entry.key}")
        found[entry.key] = entry
    return found


def keys(sources: tuple[str, ...] = SOURCES) -> list[str]:
    return [key for source in sources for key in entries(source)]


def find(key: str) -> Entry:
    """One model, its source made importable: for a process that has no other use."""
    source = key.partition("/")[0]
    transformers()  # before a torchvision without operators can come into its sight
    if source in ("timm", "torchvision"):
        peers.use()
    return entries(source)[key]
