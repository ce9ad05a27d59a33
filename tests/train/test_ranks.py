"""Several ranks, DDP and FSDP2 on gloo: one choice, the subnet of a single process, errors that name a difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from coppice.core.tensors import as_sharded, full, local, shard
from train import workers


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The trainings of one process on the whole batches."""
    return workers.whole_trainings(0, "one", 1)


@pytest.mark.parametrize(("wrap", "ranks"), [("ddp", 2), ("fsdp", 2), pytest.param("hsdp", 4, marks=pytest.mark.slow)])
def test_ranks_find_the_subnet_of_one_process(tmp_path: Path, alone: dict[str, Any], wrap: str, ranks: int) -> None:
    every = workers.spawn(workers.whole_trainings, tmp_path, wrap, ranks, ranks=ranks)
    for method, wanted in alone.items():
        for found in (rank[method] for rank in every):
            assert found["config"] == wanted["config"]
            assert found["progress"] == wanted["progress"]
            assert found["progress"]["zero"] == found["progress"]["redundant"] > 0
            torch.testing.assert_close(found["output"], wanted["output"], rtol=1e-4, atol=1e-6)
            assert all(torch.equal(t, every[0][method]["subnet"][name]) for name, t in found["subnet"].items())


def test_a_sharded_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    for rank in workers.spawn(workers.resumptions, tmp_path, str(tmp_path), seconds=240):
        for found in rank.values():
            assert found["same"] == [True] * 4
            assert found["configs"] == [found["one"]] * 4
            assert "another model, space or schedule (schedule: [12, 3, 9] there, [12, 3, 6] here)" in found["strange"]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return workers.spawn(workers.refusals, tmp_path_factory.mktemp("ranks"))


def test_ranks_that_disagree_say_in_what(refused: list[dict[str, Any]]) -> None:
    for rank in refused:
        found = rank["disagree"]
        for key in ("model", "space", "schedule", "optimizer", "options", "step"):
            assert f"ranks disagree on the {key}: rank 0 has " in found[key], key
        assert "ranks disagree on the step: they are between 1 and 2" in found["step later"]


def test_a_bad_gradient_on_one_rank_skips_the_step_on_all(refused: list[dict[str, Any]]) -> None:
    for rank in refused:
        found = rank["nan"]
        assert found["progress"] == {"step": 0, "redundant": 0, "zero": 0, "skipped": 1, "remaining": 9}
        assert found["same"]
        assert found["said"]


def test_placements_that_are_no_shards_are_refused_and_uneven_ones_known(refused: list[dict[str, Any]]) -> None:
    assert [rank["placed"]["bounds"] for rank in refused] == [((0, 3), (0, 3)), ((3, 5), (0, 3))]
    assert all(rank["placed"]["counts"] for rank in refused)
    assert all("shard along one axis per mesh dimension" in rank["placed"]["partial"] for rank in refused)


def test_whole_tensors_are_what_they_are() -> None:
    plain = torch.nn.Parameter(torch.randn(3, 2))
    assert as_sharded(plain) is None
    assert shard(plain) is None
    assert full(plain) is plain
    assert local(plain) is plain
