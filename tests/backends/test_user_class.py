"""The user's own class with sliced parameters: attributes of torch's layers say the new sizes, and the class runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from coppice import Subnet
from coppice.backends.module.attention import NarrowAttention
from coppice.backends.module.user_class import apply, plan, with_tensors
from coppice.core.extraction import Extraction, Sizes
from coppice.passes.extract.check import difference
from zoo.case import randomise
from zoo.vit import TorchAttention

Cut = Callable[..., Subnet]

# A layer, the same layer at the size it is cut to, and literals of its call that changed.
REPAIRS: dict[str, tuple[nn.Module, nn.Module, list[tuple[str, int, int]]]] = {
    "linear": (nn.Linear(8, 6), nn.Linear(5, 4), []),
    "linear without bias": (nn.Linear(8, 6, bias=False), nn.Linear(8, 3, bias=False), []),
    "conv1d": (nn.Conv1d(8, 6, 3), nn.Conv1d(5, 4, 3), []),
    "conv2d": (nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.Conv2d(5, 4, 3, stride=2, padding=1), []),
    "conv3d": (nn.Conv3d(8, 6, 1), nn.Conv3d(5, 4, 1), []),
    "conv of whole groups": (nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(4, 6, 3, groups=2), [("groups", 4, 2)]),
    "conv inside groups": (nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(4, 8, 3, groups=4), []),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(5, 5, 3, groups=5), [("groups", 8, 5)]),
    "depthwise twice as wide": (nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(5, 10, 3, groups=5), [("groups", 8, 5)]),
    "transposed": (nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ConvTranspose2d(5, 4, 2, stride=2), []),
    "transposed in groups": (
        nn.ConvTranspose2d(8, 12, 2, groups=4),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        [("groups", 4, 2)],
    ),
    "batch norm": (nn.BatchNorm2d(8), nn.BatchNorm2d(5), []),
    "batch norm without affine": (nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(5, affine=False), []),
    "instance norm": (nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(5, affine=True), []),
    "group norm": (nn.GroupNorm(4, 8), nn.GroupNorm(2, 4), [("num_groups", 4, 2)]),
    "layer norm": (nn.LayerNorm(8), nn.LayerNorm(5), []),
    "embedding": (nn.Embedding(9, 8), nn.Embedding(7, 5), []),
    "prelu": (nn.PReLU(8), nn.PReLU(5), []),
    "prelu of one": (nn.PReLU(), nn.PReLU(), []),
}


@pytest.mark.parametrize(("layer", "small", "literals"), REPAIRS.values(), ids=REPAIRS.keys())
def test_a_repaired_layer_says_the_sizes_of_its_parameters(
    layer: nn.Module, small: nn.Module, literals: list[tuple[str, int, int]]
) -> None:
    model, wanted = nn.Sequential(layer), nn.Sequential(small)
    tensors = {**dict(wanted.named_parameters()), **dict(wanted.named_buffers())}
    found = with_tensors(model, tensors, {})
    sizes = tuple(Sizes(("0",), name, (old,), (new,), True) for name, old, new in literals)
    apply(found, plan(model, Extraction(cast(Any, None), {}, sizes)), {})
    assert repr(found) == repr(wanted)
    repaired, fresh = (
        {n: v for n, v in vars(m.get_submodule("0").eval()).items() if isinstance(v, (int, tuple))}
        for m in (found, wanted)
    )
    assert repaired == fresh
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.state_dict().items())


# ---- with_tensors --------------------------------------------------------------------------------------------------


def test_a_copy_holds_copies_and_leaves_the_original_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).train()
    before = copy.deepcopy(model.state_dict())
    weight = nn.Parameter(torch.zeros(3, 4), requires_grad=False)
    result = with_tensors(model, {"0.weight": weight, "1.running_mean": torch.ones(3), "unknown": torch.ones(1)}, {})
    assert not result.training
    assert model.training
    assert not result.get_parameter("0.weight").requires_grad
    assert result.get_parameter("0.weight").data_ptr() != weight.data_ptr()
    assert result.get_buffer("1.running_mean").tolist() == [1.0, 1.0, 1.0]
    assert "unknown" not in result.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_shared_tensors_stay_shared() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    result = with_tensors(model, {"0.weight": nn.Parameter(torch.zeros(3, 4))}, {"1.weight": "0.weight"})
    assert result.get_parameter("1.weight") is result.get_parameter("0.weight")
    assert result.get_parameter("1.weight").shape == (3, 4)


# ---- whole extractions ---------------------------------------------------------------------------------------------


class Between(nn.Module):
    """A producer, the layers under test, a consumer."""

    def __init__(self, first: nn.Module, middle: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = first, middle, last

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.middle(self.first(x)))
        return result


def seq(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


IMAGES: dict[str, nn.Module] = {
    "conv": conv(8, 8),
    "batch norm": seq(nn.BatchNorm2d(8), nn.ReLU()),
    "batch norm without affine": seq(nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
    "prelu": nn.PReLU(8),
    "prelu of one": nn.PReLU(),
    "depthwise": seq(conv(8, 8, groups=8), nn.ReLU()),
    "depthwise twice as wide": seq(conv(8, 16, groups=8), nn.ReLU(), conv(16, 8)),
    "grouped": seq(conv(8, 8, groups=4), nn.ReLU()),
    "transposed": seq(nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ReLU()),
    "transposed in groups": seq(nn.ConvTranspose2d(8, 8, 2, groups=2), nn.ReLU()),
    "group norm": seq(conv(8, 8), nn.GroupNorm(4, 8), nn.ReLU()),
    "instance norm": seq(nn.InstanceNorm2d(8, affine=True), nn.ReLU()),
    "pooling and dropout": seq(nn.MaxPool2d(2), nn.Dropout2d(0.5), nn.AdaptiveAvgPool2d(2)),
}


@pytest.mark.parametrize("middle", IMAGES.values(), ids=IMAGES.keys())
def test_the_users_class_comes_back_with_repaired_attributes(middle: nn.Module, cut: Cut) -> None:
    model = Between(conv(3, 8), middle, conv(8, 4))
    randomise(model)
    same_class(cut(model, torch.randn(2, 3, 8, 8)), model, torch.randn(5, 3, 8, 8))


def same_class(subnet: Subnet, model: nn.Module, x: Tensor) -> None:
    assert subnet.receipt["module"] == {
        "kind": "user", "why": "", "reference": "user", "class": type(model).__name__, "rewritten": []
    }  # fmt: skip
    assert type(subnet.module) is type(model)
    assert sum(p.numel() for p in subnet.module.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        assert difference(subnet.reference()(x), subnet.module(x)) < 1e-5
        assert difference(subnet.graph.run(x), subnet.module(x)) < 1e-5
    for name, module in subnet.module.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.modules.conv._ConvNd):
            assert isinstance(weight, Tensor)
            sizes = (module.in_channels, module.out_channels)
            first, second = sizes if isinstance(module, nn.modules.conv._ConvTransposeNd) else sizes[::-1]
            assert tuple(weight.shape[:2]) == (first, second // module.groups), name
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.num_features == len(module.running_mean), name


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.norm = nn.LayerNorm(16)
        self.widen = nn.Linear(12, 16)
        self.hidden = nn.Linear(16, 24)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.widen(torch.relu(self.embed(x))))
        result: Tensor = self.out(torch.relu(self.hidden(x)))
        return result


def test_an_embedding_and_linear_layers_are_repaired(cut: Cut) -> None:
    subnet = cut(Words(), torch.randint(0, 11, (2, 5)))
    same_class(subnet, Words(), torch.randint(0, 11, (4, 5)))
    embed, hidden = subnet.module.get_submodule("embed"), subnet.module.get_submodule("hidden")
    assert isinstance(embed, nn.Embedding)
    assert (embed.num_embeddings, embed.embedding_dim) == (11, 6)
    assert isinstance(hidden, nn.Linear)
    assert (hidden.in_features, hidden.out_features) == (8, 12)


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = TorchAttention(16, 4)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.attention(x))
        return result


def test_a_multi_head_module_takes_fewer_heads_than_its_input_has_room_for(cut: Cut) -> None:
    """nn.MultiheadAttention ties its inner width to its input's; what it becomes does not."""
    x = torch.randn(2, 5, 16)
    subnet = cut(Attentive(), x)
    assert subnet.receipt["module"]["kind"] == "user"
    assert subnet.receipt["module"]["rewritten"] == []
    attention = next(m for m in subnet.module.modules() if isinstance(m, nn.MultiheadAttention))
    assert isinstance(attention, NarrowAttention)
    assert attention.num_heads == 2
    with torch.no_grad():
        assert difference(subnet.reference()(x), subnet.module(x)) < 1e-5
        query, mask = torch.randn(2, 5, 16), torch.ones(5, 5).triu(1).bool()
        _, weights = attention(query, query, query, attn_mask=mask)
        hidden = torch.tensor([[False] * 4 + [True]] * 2)
        padded, _ = attention(query, query, query, key_padding_mask=hidden, need_weights=False)
    assert weights.shape == (2, 5, 5)
    assert not weights[:, mask].any()
    with torch.no_grad():
        short, _ = attention(query[:, :4], query[:, :4], query[:, :4], need_weights=False)
    assert torch.allclose(padded[:, :4], short, atol=1e-6)


class Counts(nn.Module):
    """Runs at the new size and computes something else: it divides by the number of units it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.b = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        result: Tensor = self.b(hidden) / hidden.shape[1]
        return result


def test_a_class_that_runs_but_differs_gives_way_to_the_graph(cut: Cut) -> None:
    x = torch.randn(2, 6)
    subnet = cut(Counts(), x)
    assert subnet.receipt["module"]["kind"] == "graph"
    assert "runs at the new sizes but differs" in subnet.receipt["module"]["why"]
    with torch.no_grad():
        assert difference(subnet.reference()(x), subnet.module(x)) < 1e-6


class Uncopyable(Counts):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(torch.relu(self.a(x)))
        return result

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise TypeError("holds a lock")


def test_a_class_that_cannot_be_copied_gives_way_to_the_graph(cut: Cut) -> None:
    x = torch.randn(2, 6)
    subnet = cut(Uncopyable(), x)
    assert "cannot be copied" in subnet.receipt["module"]["why"]
    assert subnet.receipt["module"]["reference"] == "graph"
    with torch.no_grad():
        assert difference(subnet.reference()(x), subnet.module(x)) < 1e-6
