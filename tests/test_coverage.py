"""A sample of the models of docs/coverage.md, held to what the table says of them."""

from __future__ import annotations

import pytest
from model_coverage import registry, report
from model_coverage.measure import measure

SAMPLE = {
    "hand-written/resnet20": 0.99,
    "hand-written/yolo": 0.99,
    "hand-written/rcan": 0.99,
    "transformers/bert": 0.9,
    "transformers/qwen3": 0.9,
    "transformers/mixtral": 0.9,
    "transformers/whisper": 0.9,
    "transformers/swin": 0.9,
}
"""By key: the least fraction of the parameters that must be prunable."""


@pytest.mark.parametrize("key", SAMPLE)
def test_a_sample_of_the_table(key: str) -> None:
    row = measure(registry.find(key))
    assert report.sound(row), row
    assert row["prunable"] >= SAMPLE[key]
    assert row["moved"] > 1e-3, "the cut changes nothing, so the check shows nothing"


def test_the_list_is_long_and_mixed() -> None:
    keys = registry.keys()
    assert len(keys) >= 90
    assert len({key.partition("/")[0] for key in keys}) == 4
    domains = {e.domain for source in registry.SOURCES for e in registry.entries(source).values()}
    assert domains >= {
        "vision", "language", "speech", "detection", "segmentation", "super-resolution", "video", "recurrent",
    }  # fmt: skip


def test_a_model_that_cannot_be_traced_has_a_row_too() -> None:
    row = measure(registry.find("transformers/encodec"))
    assert row["stage"] == "build" and row["failure"].startswith("TraceError")
    assert "/" not in row["failure"].partition(":")[2].split(" ")[1], "no folders of this machine"
    page = report.markdown([row | {"tool": "coppice"}], {"torch": "2"}, {"coppice": 120.0})
    assert "encodec" in page and "not analysed" in page
