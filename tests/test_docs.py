"""The documents that are lists of what the code holds, held to it."""

from __future__ import annotations

import re
from pathlib import Path

from coppice.core.ops import OPS, lookup

DOCS = Path(__file__).parent.parent / "docs"


def test_every_row_of_the_op_table_is_documented() -> None:
    lookup(len)  # any look-up loads the table
    listed = set(re.findall(r"`((?:higher_order|aten|operator|transformers)\.[\w.]+)`", (DOCS / "ops.md").read_text()))
    assert listed == set(OPS), f"missing {sorted(set(OPS) - listed)}, stale {sorted(listed - set(OPS))}"


def test_every_local_link_of_a_document_exists() -> None:
    for page in (DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", *DOCS.glob("**/*.md")):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
