"""Segments of known networks: which there are, what they are called, what erasing them means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import coppice
from coppice import Config, Space, UsageError
from zoo import MODELS

CNN = ("resnet20", "mobilenet_v2", "densenet", "stacked_unets", "super_resnet", "darts", "regnet")
TRANSFORMERS = ("vit", "vit_sdpa", "vit_mha", "bert", "llama")


def space_of(name: str) -> Space:
    case = MODELS[name]
    model = case.build()
    args, kwargs = case.args(2)
    return coppice.build_space(coppice.trace(model, kwargs or args))


def names(space: Space) -> list[str]:
    return [segment.name for segment in space.segments]


# ---- what is found -------------------------------------------------------------------------------------------------


def test_residual_branches_and_projections_of_a_resnet() -> None:
    space = space_of("resnet20")
    blocks = [f"layer{stage}.{k}" for stage in (1, 2, 3) for k in range(3)]
    assert sorted(names(space)) == sorted([*blocks, "layer2.0.downsample", "layer3.0.downsample"])
    branch = space.segments.named("layer1.0")
    assert {name.rpartition(".")[0] for name in branch.tensors} == {
        f"layer1.0.{m}" for m in ("conv1", "bn1", "conv2", "bn2")
    }
    assert [choice.branches for choice in space.segments.choices] == [
        ("layer2.0.downsample", "layer2.0"),
        ("layer3.0.downsample", "layer3.0"),
    ]


@pytest.mark.parametrize("name", ["vit", "vit_sdpa", "vit_mha"])
def test_attention_and_mlp_of_a_transformer(name: str) -> None:
    assert names(space_of(name)) == [f"blocks.{k}.{part}" for k in range(3) for part in ("attn", "mlp")]


def test_inner_halves_of_stacked_u_nets_nest() -> None:
    space = space_of("stacked_unets")
    parents = {segment.name: segment.parent for segment in space.segments}
    for k in (0, 1):
        assert parents[f"nets.{k}.down2"] == f"nets.{k}"
        assert parents[f"nets.{k}"] == f"nets.{k}#2"
        assert parents[f"nets.{k}#2"] == ""
    inner = space.segments.named("nets.0")
    assert inner.families, "a part of a concatenation leaves with its units"
    assert all(space.families[f].name == "nets.0.up1" for f in inner.families)


def test_edges_of_a_darts_cell_are_choices_with_bare_operators_among_them() -> None:
    space = space_of("darts")
    assert [choice.name for choice in space.segments.choices] == [
        f"cells.{c}.edges.{e}" for c in (0, 1) for e in range(5)
    ]
    for choice in space.segments.choices:
        assert len(choice.branches) == 5
        bare = [name for name in choice.branches if not space.segments.named(name).tensors]
        assert len(bare) == 3, "two poolings and the identity"


def test_networks_without_joins_have_none() -> None:
    space = space_of("vgg_bn")
    assert len(space.segments) == 0
    assert space.full().skip == ()


class Gated(nn.Module):
    """x * g(x): zero there is not nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.a(x) * torch.sigmoid(self.b(x)))
        return y


class Broadcast(nn.Module):
    """A (N, 1) bias of a (N, 6) value: the value must stay, the bias may go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(4, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.relu(self.a(x) + self.b(x)))
        return y


class Scaled(nn.Module):
    """a + 2 b through ``alpha``, and a - b: only what leaves the other operand as it is can go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.add(self.a(x), self.b(x), alpha=2) - self.c(x))
        return y


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z: Tensor = self.out(self.a(x) + self.b(y))
        return z


class Shared(nn.Module):
    """One layer on both sides of a sum: neither side has it for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.relu(self.a(x)) + torch.tanh(self.a(torch.sin(x))))
        return y


@pytest.mark.parametrize(
    ("net", "inputs", "expected"),
    [
        (Gated(), 1, []),
        (Broadcast(), 1, ["b"]),
        (Scaled(), 1, ["b", "c"]),
        (TwoInputs(), 2, []),
        (Shared(), 1, []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_a_join_cannot_do_without_is_no_segment(net: nn.Module, inputs: int, expected: list[str]) -> None:
    space = coppice.build_space(coppice.trace(net.eval(), tuple(torch.randn(2, 4) for _ in range(inputs))))
    assert names(space) == expected


# ---- what erasing means --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CNN, *TRANSFORMERS])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_erased_networks_equal_their_reference_and_keep_the_users_class(name: str, share: float) -> None:
    space = space_of(name)
    config = space.random(3, erase=share)
    subnet = coppice.extract(space, config)
    assert subnet.receipt["equivalence"]["error"] <= 1e-9
    assert subnet.receipt["config"]["skip"] == list(config.skip)
    assert sum(p.numel() for p in subnet.module.parameters()) == subnet.receipt["costs"]["params"]["after"]
    if config.skip and all(space.segments.named(s).modules for s in config.skip):
        assert subnet.receipt["module"]["kind"] == ("user" if all(_inside(space, config)) else "graph")


def _inside(space: Space, config: Config) -> list[bool]:
    """Whether some module around each erased segment has a forward that can be rewritten: not the model itself."""
    return [bool(space.segments.named(name).modules[-1]) for name in config.skip]


def test_a_silent_segment_is_the_users_own_model_with_zero_weights() -> None:
    case = MODELS["resnet20"]
    model, (args, _) = case.build(), case.args(2)
    space = coppice.build_space(coppice.trace(model, args))
    config = space.erase("layer1.1", "layer3.0.downsample")
    subnet = coppice.extract(space, config)
    with torch.no_grad():
        for name in space.dead_tensors(config.skip):
            if name in dict(model.named_parameters()):
                model.get_parameter(name).zero_()
        assert torch.allclose(model.double()(args[0].double()), subnet.module.double()(args[0].double()), atol=1e-12)


def test_a_subnet_without_segments_is_saved_and_loaded(tmp_path: Path) -> None:
    space = space_of("super_resnet")
    (x,), _ = MODELS["super_resnet"].args(3)
    subnet = coppice.extract(space, space.random(1, erase=0.7))
    again = coppice.load(subnet.save(tmp_path / "subnet"))
    assert torch.equal(subnet.graph.run(x), again.module(x))
    assert Config.from_dict(again.receipt["config"]) == subnet.config


# ---- configs -------------------------------------------------------------------------------------------------------


def test_segments_inside_an_erased_one_are_no_decision() -> None:
    space = space_of("stacked_unets")
    config = space.erase("nets.0.down2", "nets.0#2")
    assert config.skip == ("nets.0#2",)
    assert config == space.erase("nets.0#2")
    narrow = Config.of({"nets.0.down1.0": [0]}, skip=["nets.0#2"])
    assert len(space.check(narrow)["nets.0.down1.0"]) == 16, "what is gone has no width"
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("skip", "part"),
    [
        (["layer9.0"], "no segment is called 'layer9.0'"),
        (["layer2.0", "layer2.0.downsample"], "leaves nothing of `add"),
    ],
)
def test_what_cannot_be_erased_is_refused(skip: list[str], part: str) -> None:
    space = space_of("resnet20")
    with pytest.raises(UsageError) as caught:
        space.erase(*skip)
    assert part in str(caught.value)
    assert caught.value.remedy


def test_choices_leave_one_branch() -> None:
    space = space_of("darts")
    picked = {choice.name: choice.branches[k % 5] for k, choice in enumerate(space.segments.choices)}
    skip = space.segments.choose(picked)
    config = space.erase(*skip)
    dead = space.dead_tensors(config.skip)
    for name, branch in picked.items():
        for other in next(c.branches for c in space.segments.choices if c.name == name):
            own = set(space.segments.named(other).tensors)
            assert own.isdisjoint(dead) if other == branch else own <= dead
    assert coppice.extract(space, config).receipt["equivalence"]["error"] <= 1e-9
    with pytest.raises(UsageError, match="no choice is called"):
        space.segments.choose({"cells.9": "x"})
    with pytest.raises(UsageError, match="no branch of"):
        space.segments.choose({"cells.0.edges.0": "cells.0.edges.1.operators.0"})


def test_a_walk_never_leaves_the_valid_ones() -> None:
    space = space_of("super_resnet")
    rng = np.random.default_rng(0)
    for _ in range(20):
        erased = [row for _, row in space.segments.walk(rng.permutation(len(space.segments)))]
        assert space.segments.valid(np.array(erased)).all()
        alive = space.segments.liveness.evaluate(erased[-1][None])[0]
        for cell in range(3):
            tensors = [space.segments.named(branch).tensors[0] for branch in space.segments.choices[cell].branches]
            left = [name for name in tensors if alive[space.segments.liveness.tensors[name]]]
            assert len(left) == 1, "a walk to the end leaves one operator of each cell"
