"""A graph as an nn.Module: the user's names, sharing and calling convention, and everything a module must survive."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from coppice import Subnet, trace
from coppice.backends.module.graph_model import graph_model
from coppice.passes.extract.check import difference
from zoo import MODELS
from zoo.case import seeded
from zoo.vit import FusedAttention

Cut = Callable[..., Subnet]


class Nested(nn.Module):
    """Names with digits, a bare parameter, a buffer that is not saved, a tied layer, and nested inputs and results."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)])
        self.bias = nn.Parameter(torch.randn(8))
        self.register_buffer("scale", torch.rand(8) + 0.5, persistent=False)
        self.encode = nn.Linear(6, 12)
        self.decode = nn.Linear(12, 6, bias=False)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().t().clone())
        self.again = nn.Linear(8, 8)
        self.again.weight = self.get_parameter("layers.1.weight")

    def forward(self, pair: tuple[Tensor, Tensor], *, more: dict[str, Tensor]) -> dict[str, Any]:
        x = torch.relu(self.layers[0](pair[0] + more["shift"])) * self.scale
        x = torch.relu(self.layers[1](x) + self.bias)
        return {"main": self.again(x), "parts": [pair[1] * 2, self.decode(torch.relu(self.encode(pair[0])))]}


def nested() -> tuple[nn.Module, dict[str, Any]]:
    pair = (torch.randn(3, 6), torch.randn(3, 6))
    return Nested().eval(), {"pair": pair, "more": {"shift": torch.randn(3, 6)}}


def test_tensors_keep_the_users_names() -> None:
    model, inputs = nested()
    graph = trace(model, inputs)
    module = graph_model(graph)
    assert isinstance(module, fx.GraphModule)
    own = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers())}
    assert set(module.state_dict()) == own
    assert {n for n, _ in module.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert not module.training


@pytest.mark.parametrize("name", ["shufflenet_v2", "vit", "llama"])
def test_a_checkpoint_of_the_users_model_loads(name: str) -> None:
    case = MODELS[name]
    model = case.build()
    args, kwargs = case.args()
    module = graph_model(trace(case.build(), kwargs or args))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.25)
    missing = module.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert [key for key in missing if key not in dict(model.named_buffers())] == []
    with torch.no_grad():
        assert difference(model(*args, **kwargs), module(*args, **kwargs)) < 1e-5


def test_shared_tensors_are_one_tensor_under_all_their_names() -> None:
    module = graph_model(trace(*nested()))
    assert module.get_parameter("again.weight") is module.get_parameter("layers.1.weight")
    llama = MODELS["llama_tied"]
    tied = graph_model(trace(llama.build(), llama.args()[0]))
    assert tied.get_parameter("lm_head.weight") is tied.get_parameter("model.embed_tokens.weight")
    assert sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in llama.build().parameters())


def test_it_is_called_as_the_users_model_is() -> None:
    model, inputs = nested()
    module = graph_model(trace(model, inputs))
    with torch.no_grad():
        wanted, found = model(**inputs), module(**inputs)
    assert isinstance(found, dict)
    assert list(found) == ["main", "parts"]
    assert isinstance(found["parts"], list)
    assert difference(wanted, found) < 1e-6


def test_the_batch_may_change() -> None:
    case = MODELS["shufflenet_v2"]
    model = case.build()
    module = graph_model(trace(model, case.args(2)[0]))
    for batch in (1, 2, 5):
        args, _ = case.args(batch)
        with torch.no_grad():
            assert difference(model(*args), module(*args)) < 1e-5


def test_it_shares_the_graphs_tensors_unless_given_others() -> None:
    model, inputs = nested()
    graph = trace(model, inputs)
    assert graph_model(graph).get_parameter("bias") is model.get_parameter("bias")
    others: dict[str, Tensor] = {name: nn.Parameter(torch.zeros_like(t)) for name, t in graph.tensors.items()}
    module = graph_model(graph, others)
    assert all(not t.any() for t in module.state_dict().values())
    assert bool(model.get_parameter("bias").any())


# ---- a life as a module --------------------------------------------------------------------------------------------


class Sized(FusedAttention):
    """Attention as the root: its own forward holds for one width of the heads only."""

    def __init__(self) -> None:
        super().__init__(24, 4)
        self.embed, self.head = nn.Conv2d(3, 24, 8, 8), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(super().forward(self.embed(x).flatten(2).transpose(1, 2))[:, 0])
        return y


@pytest.fixture
def subnet(cut: Cut) -> Subnet:
    """A subnet whose module is a GraphModule, because the root's own forward holds a size."""
    result = cut(seeded(Sized)(), torch.randn(2, 3, 32, 32))
    assert isinstance(result.module, fx.GraphModule)
    assert result.receipt["module"]["kind"] == "graph"
    assert "does not run at the new sizes" in result.receipt["module"]["why"]
    return result


def test_a_deep_copy_is_independent(subnet: Subnet) -> None:
    x = torch.randn(2, 3, 32, 32)
    twin = copy.deepcopy(subnet.module)
    with torch.no_grad():
        before = subnet(x)
        assert torch.equal(twin(x), before)
        for p in twin.parameters():
            p.zero_()
        assert torch.equal(subnet(x), before)


def test_double_precision_agrees(subnet: Subnet) -> None:
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        single = subnet(x)
        precise = copy.deepcopy(subnet.module).double()(x.double())
    assert precise.dtype == torch.float64
    torch.testing.assert_close(single.double(), precise, rtol=1e-4, atol=1e-4)


def test_half_precision_runs(subnet: Subnet) -> None:
    module = copy.deepcopy(subnet.module).bfloat16()
    with torch.no_grad():
        assert module(torch.randn(2, 3, 32, 32).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["vit", "shufflenet_v2", "llama_tied"])
def test_it_trains_further(name: str, cut: Cut) -> None:
    case = MODELS[name]
    args, kwargs = case.args(4)
    module = cut(case.build(), *args, **kwargs).module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        result = module(*args, **kwargs)
        loss = (result if isinstance(result, Tensor) else result["logits"]).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None for p in module.parameters())
    assert losses[-1] < losses[0]


def test_its_state_survives_a_file(subnet: Subnet, tmp_path: Any) -> None:
    torch.save(subnet.module.state_dict(), tmp_path / "weights.pt")
    twin = copy.deepcopy(subnet.module)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(twin(x), subnet(x))


def test_it_can_be_traced_and_cut_again(subnet: Subnet, cut: Cut) -> None:
    again = cut(subnet.module, torch.randn(2, 3, 32, 32))
    count = [sum(p.numel() for p in s.module.parameters()) for s in (subnet, again)]
    assert count[1] < count[0]
