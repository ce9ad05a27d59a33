"""Least-squares reformation: the formula, that it makes up for a cut, and that the receipt tells the truth about it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coppice import (
    Config,
    Subnet,
    UnsupportedError,
    UsageError,
    build_space,
    compress,
    extract,
    load,
    recalibrate,
    reform,
    trace,
)
from coppice.passes.compress import reform as passes
from coppice.passes.extract.check import difference
from zoo import MODELS


class Net(nn.Module):
    """Two layers; ``units`` neurons between them."""

    def __init__(self, units: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, units), nn.Linear(units, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.a(x)))
        return y


def keep(model: nn.Module, x: Any, share: float = 0.5) -> Subnet:
    space = build_space(trace(model.eval(), x))
    return extract(space, space.uniform(share))


def zoo(name: str) -> tuple[nn.Module, Subnet, list[Any]]:
    """A model whose batch norms know the data, half of each family cut, and the data."""
    case = MODELS[name]
    model = case.build()
    args, _ = case.args(8)
    shape = (64 if args[0].ndim == 2 else 24, *args[0].shape[1:])
    batches = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in range(6)]
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train().reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model, keep(model, args), batches


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Least squares with next to no ridge."""
    monkeypatch.setattr(passes, "solve", functools.partial(passes.solve, ridges=(1e-12,)))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_least_squares_solution(bias: bool) -> None:
    model = Net(bias=bias).double()
    x = torch.randn(64, 6, dtype=torch.float64)
    subnet = keep(model, x[:2])
    kept = [(model.a.weight == row).all(1).nonzero().item() for row in subnet.module.get_parameter("a.weight")]
    reform(subnet, [x[:40], x[40:]])
    with torch.no_grad():
        hidden, wanted = torch.relu(model.a(x))[:, kept], model(x)
        matrix = torch.cat([hidden, torch.ones(64, 1).double()], 1) if bias else hidden
        expected = torch.linalg.lstsq(matrix, wanted).solution.T
    torch.testing.assert_close(subnet.module.get_parameter("b.weight").detach(), expected[:, :4], rtol=1e-6, atol=1e-8)
    if bias:
        torch.testing.assert_close(subnet.module.get_parameter("b.bias").detach(), expected[:, 4], rtol=1e-6, atol=1e-8)


def test_the_formula_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """W' = W C[:, K] (C_KK + ridge)^-1 where the kept weights are zero, from which the ridge draws nothing."""
    model = Net(bias=False).double()
    x = torch.randn(64, 6, dtype=torch.float64)
    subnet = keep(model, x[:2])
    kept = [(model.a.weight == row).all(1).nonzero().item() for row in subnet.module.get_parameter("a.weight")]
    with torch.no_grad():
        subnet.module.get_parameter("b.weight").zero_()
        hidden = torch.relu(model.a(x))
    monkeypatch.setattr(passes, "solve", functools.partial(passes.solve, ridges=(0.1,)))
    reform(subnet, [x])
    c = hidden.T @ hidden / 64
    small = c[kept][:, kept]
    damped = small + 0.1 * small.diagonal().mean() * torch.eye(4).double()
    expected = model.b.weight.detach() @ c[:, kept] @ damped.inverse()
    torch.testing.assert_close(subnet.module.get_parameter("b.weight").detach(), expected)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("convolution", [False, True])
def test_a_unit_that_others_can_stand_in_for_costs_nothing(convolution: bool) -> None:
    """Half of the units repeat the other half, twice as large: what leaves is made up for exactly."""
    layers: list[nn.Module] = (
        [nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, stride=2, padding=1)]
        if convolution
        else [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)]
    )
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for name, tensor in model[0].named_parameters():
            assert name
            tensor[4:] = tensor[:4] / 2
    x = torch.randn(32, *((2, 7, 7) if convolution else (6,)), dtype=torch.float64)
    space = build_space(trace(model, x[:2]))
    subnet = extract(space, Config.of({space.families[0].name: range(4)}))
    with torch.no_grad():
        assert difference(model(x), subnet(x)) > 1e-2
        reform(subnet, [x[:16], x[16:]])
        assert difference(model(x), subnet(x)) < 1e-6
    assert subnet.receipt["reformed"]["output"]["after"] < 1e-12


@pytest.mark.parametrize("name", ["digits", "mlp_bn", "vit", "mobilenet_v2"])
def test_the_output_comes_nearer_and_the_proof_holds(name: str) -> None:
    model, subnet, batches = zoo(name)
    cut_error = subnet.receipt["equivalence"]["error"]
    other = keep(model, MODELS[name].args(8)[0])
    assert reform(subnet, batches) is subnet
    receipt = subnet.receipt["reformed"]
    fresh = torch.randn(batches[0].shape, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        lacks = [float((model(fresh) - s(fresh)).square().mean()) for s in (recalibrate(other, batches), subnet)]
        assert lacks[1] < lacks[0]
        assert difference(subnet.reference()(fresh), subnet(fresh)) < 1e-4
        assert difference(subnet.graph.run(fresh), subnet(fresh)) < 1e-5
    assert receipt["output"]["after"] < receipt["output"]["before"]
    assert all(fit["after"] <= fit["before"] for fit in receipt["weights"].values())
    assert receipt["cut_error"] == cut_error
    assert subnet.receipt["equivalence"]["error"] < 1e-9
    fitted = set(receipt["weights"])
    changed = {n for n, p in subnet.module.named_parameters() if not torch.equal(p, other.module.get_parameter(n))}
    assert changed
    assert changed <= fitted | {name.replace(".weight", ".bias") for name in fitted}


@pytest.mark.parametrize("units", [False, True], ids=["segment alone", "units too"])
def test_layers_behind_an_erased_segment_make_up_for_it(units: bool) -> None:
    model, _, batches = zoo("digits")
    space = build_space(trace(model, batches[0]))
    whole = space.check(Config.of({}, skip=[space.segments[0].name]))
    config = space.check(Config.of(dict(space.uniform(0.7).keep), skip=whole.skip)) if units else whole
    subnet = reform(extract(space, config), batches)
    output = subnet.receipt["reformed"]["output"]
    assert output["after"] < 0.7 * output["before"]
    assert subnet.receipt["equivalence"]["error"] < 1e-9
    erased = {n for n in dict(model.named_parameters()) if n.startswith(whole.skip[0])}
    assert erased
    assert not erased & subnet.receipt["reformed"]["weights"].keys()


def test_progress_names_the_layers_in_order() -> None:
    x, seen = torch.randn(16, 6), list[tuple[str, float]]()
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    reform(keep(model, x), [x], progress=lambda what, done: seen.append((what, done)))
    assert seen == [("fit linear_1", 0.0), ("fit linear_2", 0.5)]


def test_the_users_model_is_not_touched() -> None:
    model, subnet, batches = zoo("digits")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reform(subnet, batches)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_units_that_are_zero_leave_nothing_to_make_up_for() -> None:
    model, subnet, batches = zoo("digits")
    with torch.no_grad():
        for name, tensor in subnet.masked_tensors().items():
            dict(model.state_dict())[name].copy_(tensor)
    space = subnet.space
    assert space is not None
    assert subnet.config is not None
    exact = extract(space, subnet.config)
    before = {n: p.detach().clone() for n, p in exact.module.named_parameters()}
    reform(exact, batches)
    for name, parameter in exact.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=1e-4, atol=1e-5)
    assert exact.receipt["reformed"]["output"]["before"] < 1e-9


def test_too_few_samples_do_no_harm() -> None:
    """Four samples say nothing about sixty inputs: on others, the result is no worse than without."""
    model, subnet, batches = zoo("mlp")
    reform(subnet, [batches[0][:4]])
    fresh = torch.cat(batches[1:])
    other = keep(model, fresh[:4])
    with torch.no_grad():
        lacks = [float((model(fresh) - s(fresh)).square().mean()) for s in (other, subnet)]
    assert lacks[1] < 1.2 * lacks[0]


def test_batch_norms_are_measured_again_only_where_that_helps() -> None:
    """A model whose running statistics are not those of the data: measuring them again would make another model."""
    model = MODELS["mlp_bn"].build()
    x = torch.randn(64, 32)
    odd = reform(keep(model, x[:4]), [x])
    statistics = {n: b for n, b in odd.slice(model.state_dict()).items() if "running" in n}
    assert odd.receipt["recalibrated"] == []
    assert odd.receipt["reformed"]["output"]["after"] < odd.receipt["reformed"]["output"]["before"]
    assert all(torch.equal(odd.module.get_buffer(n), b) for n, b in statistics.items())
    torch.manual_seed(0)
    grouped = nn.Conv2d(16, 8, 1, groups=2)  # not reformed: its norm has to make up for what is gone
    layers = [nn.Conv2d(2, 16, 1), nn.ReLU(), grouped, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)]
    other, x = nn.Sequential(*layers), torch.randn(64, 2, 6, 6)
    with torch.no_grad():
        for _ in range(100):
            other.train()(x)
    space = build_space(trace(other.eval(), x[:4]))
    (family,) = [f for f in space.families if any(s.tensor == "2.weight" and s.role == "in" for s in f.slices)]
    subnet = extract(space, Config.of({family.name: range(family.size // 2)}))
    assert reform(subnet, [x]).receipt["recalibrated"] == ["3.running_mean", "3.running_var"]


def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _, one, batches = zoo("digits")
    _, two, _ = zoo("digits")
    reform(one, batches)
    monkeypatch.setattr(passes, "CHUNK", 1)
    reform(two, [torch.cat(batches[:1]), torch.cat(batches[1:])])
    weights = one.receipt["reformed"]["weights"]
    for name, fit in two.receipt["reformed"]["weights"].items():
        assert fit["before"] == pytest.approx(weights[name]["before"], rel=1e-5)
        torch.testing.assert_close(one.module.get_parameter(name), two.module.get_parameter(name), rtol=1e-3, atol=1e-4)


def test_reformation_twice_keeps_the_error_of_the_cut() -> None:
    _, subnet, batches = zoo("mlp_bn")
    cut_error = subnet.receipt["equivalence"]["error"]
    reform(reform(subnet, batches), batches)
    assert subnet.receipt["reformed"]["cut_error"] == cut_error


class Sigmoid(nn.Module):
    """Removed units leave 1/2 behind, which the second bias holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.sigmoid(self.a(x)))
        return y


def test_a_folded_bias_is_corrected_and_the_reference_follows() -> None:
    model, x = Sigmoid(), torch.randn(64, 6)
    subnet = reform(keep(model, x[:2]), [x])
    assert subnet.receipt["folded"] == ["b.bias"]
    assert subnet.receipt["equivalence"]["error"] < 1e-9
    assert subnet.receipt["reformed"]["output"]["after"] < 0.5 * subnet.receipt["reformed"]["output"]["before"]
    with torch.no_grad():
        assert difference(subnet.reference()(x), subnet(x)) < 1e-5


def test_a_saved_subnet_carries_the_new_weights(tmp_path: Path) -> None:
    _, subnet, batches = zoo("digits")
    loaded = load(reform(subnet, batches).save(tmp_path / "subnet"))
    with torch.no_grad():
        assert difference(subnet(batches[0]), loaded(batches[0])) < 1e-6
    assert loaded.receipt["reformed"] == subnet.receipt["reformed"]
    with pytest.raises(UnsupportedError, match="does not carry the full model"):
        reform(loaded, batches)


class Left(nn.Module):
    """Consumers without a matrix of their own: grouped, transposed, shared."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.same = nn.Conv2d(6, 6, 1)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(torch.relu(self.grouped(torch.relu(self.a(x))))))
        y: Tensor = self.out(torch.relu(self.same(torch.relu(self.same(x)))))
        return y


def test_what_is_left_alone_is_said_with_the_reason() -> None:
    x = torch.randn(8, 2, 4, 4)
    receipt = reform(keep(Left(), x), [x]).receipt["reformed"]
    assert set(receipt["weights"]) == {"out.weight"}
    assert {name: why.split(",")[0] for name, why in receipt["left"].items()} == {
        "grouped.weight": "it is grouped",
        "up.weight": "the op table does not say how `conv_transpose2d` is linear in it",
        "same.weight": "it is shared",
    }


def test_a_layer_with_too_many_inputs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "LARGEST", 3)
    x = torch.randn(16, 6)
    receipt = reform(keep(Net(), x), [x]).receipt["reformed"]
    assert receipt["weights"] == {}
    assert "4, too many to solve for" in receipt["left"]["b.weight"]


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "no calibration batch"),
        (torch.zeros(4, 6), "not several batches"),
        ([torch.full((4, 6), torch.nan)], "NaN or infinite"),
        ([torch.zeros(4, 7)], r"input .* has shape \(4, 7\)"),
    ],
)
def test_bad_data_is_refused_and_nothing_changes(calibration: Any, message: str) -> None:
    subnet = keep(Net(), torch.randn(4, 6))
    before = {name: tensor.clone() for name, tensor in subnet.module.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        reform(subnet, calibration)
    assert all(torch.equal(tensor, before[name]) for name, tensor in subnet.module.state_dict().items())
    assert "reformed" not in subnet.receipt


def test_compress_reforms_on_request() -> None:
    model, _, batches = zoo("digits")
    plain = compress(model, batches[0], budget={"macs": "50%"}, calibration=batches)
    subnet = compress(model, batches[0], budget={"macs": "50%"}, calibration=batches, reform=True)
    assert "reformed" not in plain.receipt
    assert subnet.receipt["reformed"]["weights"]
    with pytest.raises(UsageError, match="reform=True needs data"):
        compress(model, batches[0], budget={"macs": "50%"}, reform=True)
