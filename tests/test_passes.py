"""The pass infrastructure: pipelines verify, tell the truth about changes, and show each step."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from torch import Tensor, nn

import coppice
from coppice.core.errors import VerifyError
from coppice.core.graph import Graph
from coppice.core.passes import Pass, Pipeline, Step
from coppice.passes.extract.tidy import TIDY, EraseDead, EraseIdentities


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(4, 8), nn.Linear(8, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.drop(torch.relu(self.first(x)))[:])
        return y


@pytest.fixture
def graph() -> Graph:
    return coppice.trace(Net(), torch.randn(2, 4))


def ops(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes if node.op == "call_function"]


def test_tidy_erases_what_does_nothing_in_eval_mode_and_keeps_the_result(graph: Graph) -> None:
    x = torch.randn(5, 4)
    before = graph.run(x)
    assert {"dropout", "slice_1"} <= set(ops(graph))
    assert TIDY.run(graph)
    assert ops(graph) == ["linear", "relu", "linear_1"]
    assert torch.equal(graph.run(x), before)
    assert not TIDY.run(graph), "a second run finds nothing to do and says so"


def test_a_pass_is_a_frozen_value() -> None:
    assert EraseDead() == EraseDead()
    with pytest.raises(FrozenInstanceError):
        TIDY.repeat = True  # type: ignore[misc]


def test_a_pipeline_is_a_pass_and_shows_each_step(graph: Graph) -> None:
    steps: list[Step] = []
    inner = Pipeline((EraseIdentities(),))
    assert Pipeline((inner, EraseDead()), observer=steps.append).run(graph)
    assert [(step.name, step.changed) for step in steps] == [("Pipeline", True), ("EraseDead", False)]
    assert all(step.seconds >= 0 for step in steps)


@dataclass(frozen=True)
class Liar(Pass):
    def run(self, graph: Graph) -> bool:
        return True


@dataclass(frozen=True)
class Vandal(Pass):
    def run(self, graph: Graph) -> bool:
        del graph.tensors["first.weight"]
        graph.version += 1
        return True


def test_a_pass_that_only_claims_a_change_is_named(graph: Graph) -> None:
    with pytest.raises(VerifyError, match="pass Liar"):
        Pipeline((Liar(),)).run(graph)


def test_a_pass_that_breaks_the_graph_is_named(graph: Graph) -> None:
    with pytest.raises(VerifyError, match=r"after pass Vandal.*no tensor is called 'first\.weight'"):
        Pipeline((Vandal(),)).run(graph)


def test_a_space_refuses_a_graph_that_has_changed(graph: Graph) -> None:
    space = coppice.build_space(graph)
    TIDY.run(graph)
    with pytest.raises(coppice.CoppiceError, match="version"):
        space.removed(space.full())


def test_an_edge_cannot_be_moved_to_a_later_node(graph: Graph) -> None:
    first, last = (node for node in graph.nodes if node.name in ("linear", "linear_1"))
    with pytest.raises(VerifyError, match="does not come before"):
        graph.replace(first, last)
