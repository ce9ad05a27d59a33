"""Every architecture family: what a person expects to leave can, half of it does, and the rest computes the same."""

from __future__ import annotations

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn

import coppice
from coppice.core.space import Space
from coppice.passes.extract.check import compare, difference
from zoo import MODELS, Case

CASTS = ("bert", "llama")  # transformers cast to float32 inside, so their modules agree to float32 only


def space_of(case: Case) -> tuple[nn.Module, Space]:
    model = case.build()
    return model, coppice.build_space(coppice.trace(model, case.inputs(2)))


@pytest.fixture(scope="module", params=sorted(MODELS))
def built(request: pytest.FixtureRequest) -> tuple[Case, nn.Module, Space]:
    case = MODELS[request.param]
    return case, *space_of(case)


def test_what_a_person_expects_to_be_prunable_is(built: tuple[Case, nn.Module, Space]) -> None:
    case, model, space = built
    cut = {(s.tensor, s.axis) for family in space.families for s in family.slices}
    reasons = {entry.axis.split("[")[0]: entry for entry in space.frozen}
    for name in case.names(model, "expect"):
        canonical = space.graph.canonical(name)
        assert (canonical, case.axis(name)) in cut, f"{name} is frozen: {reasons.get(canonical)}"


def test_what_must_stay_is_frozen_with_a_reason(built: tuple[Case, nn.Module, Space]) -> None:
    case, model, space = built
    cut = {(s.tensor, s.axis) for family in space.families for s in family.slices}
    for name in (*case.names(model, "expect_frozen"), *case.names(model, "later")):
        assert (space.graph.canonical(name), case.axis(name)) not in cut, f"{name} is not removable"
    assert all(entry.reason for entry in space.frozen)


def test_half_of_each_family_leaves_and_the_rest_computes_the_same(built: tuple[Case, nn.Module, Space]) -> None:
    case, model, space = built
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = space.uniform(0.5)
    subnet = coppice.extract(space.graph, config)
    full, small = space.cost(space.full()), space.cost(config)
    assert small["params"][0] < 0.9 * full["params"][0]
    assert small["macs"][0] < 0.9 * full["macs"][0]
    exact = compare(space.graph, space.masked_tensors(config), subnet.graph)
    assert exact.error <= 1e-9
    assert len(exact.batches) >= 2, "the check ran at two batch sizes"
    wide = not case.name.startswith(CASTS)
    module, reference = subnet.module, subnet.reference()
    if wide:
        module, reference = module.double(), reference.double()
    for batch in (1, 3):
        args, kwargs = case.args(batch, torch.float64 if wide else torch.float32)
        with torch.no_grad():
            gap = difference(reference(*args, **kwargs), module(*args, **kwargs))
        assert gap <= (1e-9 if wide else 1e-4), f"batch {batch} differs by {gap}"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "model untouched"


@pytest.mark.parametrize("seed", range(2))
def test_random_configs_compute_the_same(built: tuple[Case, nn.Module, Space], seed: int) -> None:
    case, _, space = built
    if case.slow:
        pytest.skip("covered by its uniform config; a random one would add minutes and no new structure")
    subnet = coppice.extract(space, space.random(seed))
    assert subnet.receipt["equivalence"]["error"] <= 1e-9


def test_costs_are_those_of_the_module_that_comes_out(built: tuple[Case, nn.Module, Space]) -> None:
    _, _, space = built
    config = space.random(7)
    subnet = coppice.extract(space, config, validate=False)
    parameters = {id(p): p.numel() for p in subnet.tensors().values() if isinstance(p, nn.Parameter)}
    assert space.costs.exact
    assert space.cost(config)["params"][0] == sum(parameters.values())


@pytest.mark.parametrize("name", ["bert", "llama", "resnet20", "shufflenet_v2"])
def test_meta_tensors_give_the_same_space(name: str) -> None:
    case = MODELS[name]
    _, real = space_of(case)
    graph = coppice.trace(case.build().to("meta"), case.inputs(2))
    space = coppice.build_space(graph)
    assert [(f.name, f.size) for f in space.families] == [(f.name, f.size) for f in real.families]
    subnet = coppice.extract(space, space.uniform(0.5))
    assert subnet.receipt["validated"] is False
    assert all(leaf.is_meta for leaf in pytree.tree_leaves(dict(subnet.module.named_parameters())))


def test_known_numbers_of_resnet50() -> None:
    _, space = space_of(MODELS["resnet50"])
    full = space.cost(space.full())
    assert len(space.families) == 37
    assert full["params"][0] == 25_557_032
    assert full["macs"][0] == pytest.approx(4.089e9, rel=1e-3)
