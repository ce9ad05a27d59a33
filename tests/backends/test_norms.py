"""Norms that count units which left: the user's own classes, in every layout, give what the masked model gives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coppice
from coppice.backends.module.norms import CountedChannelNorm, CountedGroupNorm, CountedLayerNorm


class ChannelsFirst(nn.LayerNorm):
    """As vision libraries write it: [batch, channels, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class ChannelsLast(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Root(nn.Module):
    """A hand-written RMS norm along axis 1, with one added to the weight as Gemma has it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.randn(size) / 4), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps)
        return y * (1 + self.weight[:, None, None])


class TorchRoot(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


NORMS: dict[str, tuple[nn.Module, type[nn.Module]]] = {
    "layer norm, channels first": (ChannelsFirst(8), CountedChannelNorm),
    "root mean square by hand": (Root(8), Root),
    "nn.RMSNorm": (TorchRoot(8), TorchRoot),
    "group norm of one group": (nn.GroupNorm(1, 8), CountedGroupNorm),
}


class Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.first(x)))
        return y


@pytest.mark.parametrize("residual", ["exact", "renormalise"])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_over_channels(name: str, residual: str) -> None:
    norm, counted = NORMS[name]
    torch.manual_seed(0)
    model = Net(copy.deepcopy(norm)).eval()
    with torch.no_grad():
        for parameter in model.norm.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    x = torch.randn(2, 3, 5, 5)
    space = coppice.build_space(coppice.trace(model, x), residual=residual)
    config = space.with_widths({"first": 5})
    subnet = coppice.extract(space, config)
    assert type(subnet.module) is Net, subnet.receipt["module"]
    assert type(subnet.module.norm) is (counted if residual == "exact" else type(norm))
    masked = copy.deepcopy(model).double()
    with torch.no_grad():
        for tensor, masks in space.zero_masks(config).items():
            if masks[0] is not None:
                masked.get_parameter(tensor)[torch.from_numpy(masks[0])] = 0
        wide = copy.deepcopy(subnet.module).double()(x.double())
        assert torch.allclose(wide, subnet.reference().double()(x.double()), rtol=0, atol=1e-11)
        assert torch.allclose(wide, masked(x.double()), rtol=0, atol=1e-11) == (residual == "exact")


class Tokens(nn.Module):
    """A residual stream [batch, length, 8] under two layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.mlp = nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.norm2, self.head = nn.LayerNorm(8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.mlp(self.norm1(h)).relu()
        y: Tensor = self.head(self.norm2(h))
        return y


def test_a_residual_stream_narrows_as_one_family() -> None:
    torch.manual_seed(0)
    model = Tokens().eval()
    space = coppice.build_space(coppice.trace(model, torch.randint(9, (2, 6))))
    assert {f.name: f.size for f in space.families} == {"embed": 8}
    subnet = coppice.extract(space, space.with_widths({"embed": 3}))
    module = subnet.module
    assert isinstance(module, Tokens)
    assert isinstance(module.norm1, CountedLayerNorm)
    assert (module.norm1.normalized_shape, module.norm1.count) == ((3,), 8)
    x = torch.randint(9, (4, 6))
    with torch.no_grad():
        wide, reference = copy.deepcopy(module).double(), subnet.reference().double()
        assert torch.allclose(wide(x), reference(x), rtol=0, atol=1e-12)


def test_a_norm_without_weight_leaves_its_mean_behind() -> None:
    model = Net(nn.GroupNorm(1, 8, affine=False))
    space = coppice.build_space(coppice.trace(model, torch.randn(2, 3, 5, 5)))
    assert not space.families
    entry = next(e for e in space.frozen if e.axis == "first.weight[out]")
    assert "a value that depends on the other units" in entry.reason


def test_what_is_not_zero_under_the_norm_holds_its_units() -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sigmoid()

    model = Net(nn.Sequential(Shifted(), ChannelsFirst(8)))
    space = coppice.build_space(coppice.trace(model, torch.randn(2, 3, 5, 5)))
    assert not space.families
    assert "is not zero there" in next(e.reason for e in space.frozen if e.axis == "first.weight[out]")


def test_subnets_with_counted_norms_save_load_and_export(tmp_path: object) -> None:
    from pathlib import Path

    torch.manual_seed(0)
    model = Tokens().eval()
    x = torch.randint(9, (2, 6))
    space = coppice.build_space(coppice.trace(model, x))
    subnet = coppice.extract(space, space.uniform(0.5))
    folder = Path(str(tmp_path))
    loaded = coppice.load(subnet.save(folder / "subnet"))
    with torch.no_grad():
        assert torch.allclose(loaded(x), subnet(x), rtol=0, atol=1e-6)
    subnet.export_onnx(folder / "model.onnx")
    assert subnet.receipt["onnx"]["checked"]["error"] < 1e-4
