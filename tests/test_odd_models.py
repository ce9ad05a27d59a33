"""Models that do what models may do: each is cut soundly, or refused with a fact, a place and a remedy."""

# mypy: disable-error-code="no-untyped-call, no-any-return"
from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_leaves, tree_map

import coppice
from properties.reference import gap, masked
from test_bad_input import fails

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what is under test: old norms, scripts
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

V, X = torch.randn(2, 4), torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """(N, 4) -> (N, 2) through six units; ``forward`` is given, and may use more tensors and modules."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.a, self.b, self.run = nn.Linear(4, 6), nn.Linear(6, 2), forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def double(value: Any) -> Any:
    return tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, value)


def fresh(example: Any) -> Any:
    """Other inputs of the same shapes."""
    return tree_map(lambda x: torch.randn_like(x) if isinstance(x, Tensor) and x.is_floating_point() else x, example)


def call(model: Any, example: Any) -> Any:
    return (
        model(**example) if isinstance(example, dict) else model(*(example if type(example) is tuple else (example,)))
    )


@torch.no_grad()
def cut(model: nn.Module, example: Any = V, widths: dict[str, int] | None = None) -> coppice.Subnet:
    """Half of every family leaves; the subnet is what the model becomes when their slices are zero.

    ``widths`` are the families that must be found.
    """
    model.eval()
    space = coppice.build_space(coppice.trace(model, example))
    if widths is not None:
        assert {f.name: f.size for f in space.families} == widths, [str(entry) for entry in space.frozen]
    config = space.uniform(0.5)
    subnet = coppice.extract(space, config)
    assert space.graph.model is not None
    inputs = double(fresh(example))
    expected = call(masked(space.graph.model, space, config), inputs)
    assert gap(expected, call(copy.deepcopy(subnet.module).double(), inputs)) <= 1e-6  # some cast to fp32 inside
    return subnet


# ---- hooks, wrappers, shared modules -------------------------------------------------------------------------------


def doubled(_: Any, __: Any, out: Tensor) -> Tensor:
    return out * 2


def test_hooks_that_change_values_are_part_of_the_model() -> None:
    model = mlp()
    model[0].register_forward_hook(doubled)
    model[2].register_forward_pre_hook(lambda _, given: (given[0] * 3,))
    model.register_forward_hook(lambda _, __, out: torch.cat([out, -out], 1))
    subnet = cut(model, widths={"0": 6})
    assert type(subnet.module) is nn.Sequential
    assert subnet.module(V).shape == (2, 4)


def test_a_hook_that_moves_zero() -> None:
    model = mlp()
    model[1].register_forward_hook(lambda _, __, out: out.sigmoid())
    assert type(cut(model, widths={"0": 6}).module) is nn.Sequential  # the constant 0.5 goes into the next bias
    model[1].register_forward_hook(lambda _, __, out: out.softmax(-1))
    assert coppice.build_space(coppice.trace(model, V)).families == ()


def test_a_hook_with_a_width_of_its_own_costs_the_class() -> None:
    model, mask = mlp(), torch.tensor([1.0, 0, 1, 0, 1, 1])
    model[1].register_forward_hook(lambda _, __, out: out * mask.to(out.dtype))
    space = coppice.build_space(coppice.trace(model, V))
    subnet = coppice.extract(space, space.uniform(0.5))
    assert subnet.module.get_parameter("0.weight").shape == (3, 4)
    assert subnet.receipt["module"]["kind"] == "graph"
    assert "does not run at the new sizes" in subnet.receipt["module"]["why"]


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "OptimizedModule": torch.compile,
    "DataParallel of OptimizedModule": lambda model: nn.DataParallel(torch.compile(model)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_come_off(name: str) -> None:
    model = mlp()
    graph = coppice.trace(WRAPPERS[name](model), V)
    assert graph.model is model
    assert graph.name == "Sequential"
    assert [n for n in graph.notes if "was traced" in n] == [
        f"the module inside {kind} was traced" for kind in name.split(" of ")
    ]
    subnet = cut(WRAPPERS[name](mlp()), widths={"0": 6})
    assert type(subnet.module) is nn.Sequential


def test_a_compiled_part_is_traced_through() -> None:
    net = Net(lambda s, x: s.b(torch.relu(s.a(x))))
    net.a = torch.compile(net.a)  # type: ignore[assignment]
    space = coppice.build_space(coppice.trace(net, V))
    assert [f.size for f in space.families] == [6]


class Shared(nn.Module):
    """One layer under two names, three times in a list, and called five times."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.again, layer = self.a, nn.Linear(6, 6)
        self.layers = nn.ModuleList([layer, layer, nn.Linear(6, 6)])
        self.same = self.layers

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.again(x))
        for layer in (*self.layers, *self.same):
            h = torch.relu(layer(h))
        return self.b(h)


def test_shared_modules_stay_shared() -> None:
    module = cut(Shared(), widths={"a": 6}).module
    assert isinstance(module, Shared)
    assert module.again.weight is module.a.weight
    assert module.layers[0].weight is module.layers[1].weight
    assert module.layers[0].weight.shape == (3, 3)


# ---- state, random numbers -----------------------------------------------------------------------------------------


def counting(net: Any, x: Tensor) -> Tensor:
    net.count.add_(1)
    return net.b(net.hidden(x)) * net.count


def test_state_that_forward_writes_is_noted_and_left_as_it_was() -> None:
    net = Net(counting, count=torch.ones(()))
    graph = coppice.trace(net, V)
    assert net.count == 1
    assert "forward writes to count; the subnet keeps the traced value" in graph.notes
    space = coppice.build_space(graph)
    subnet = coppice.extract(space, space.uniform(0.5))
    assert net.count == 1
    assert "does forward keep state?" in subnet.receipt["module"]["why"]
    assert torch.equal(subnet.module(V), subnet.module(V))
    with torch.no_grad():
        assert gap(net.b(torch.relu(net.a(V))) * 2, graph.run(V)) <= 1e-6


def test_a_failed_trace_leaves_the_state_too() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        net.count.add_(1)
        return net.b(net.hidden(x)) if net.hidden(x).sum() > 0 else x

    net = Net(forward, count=torch.ones(()))
    fails(lambda: coppice.trace(net, V), 3, "torch.where")
    assert net.count == 1


def test_an_input_written_in_place() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x.mul_(2)
        return net.b(net.hidden(x))

    x, before = V.clone(), V.clone()
    space = coppice.build_space(coppice.trace(Net(forward), x))
    assert torch.equal(x, before)
    assert coppice.extract(space, space.uniform(0.5)).receipt["equivalence"]["error"] <= 1e-9


def test_random_numbers_in_forward() -> None:
    late = Net(lambda s, x: s.b(s.hidden(x)) + torch.rand_like(x[:, :2]))
    space = coppice.build_space(coppice.trace(late, V))
    assert coppice.extract(space, space.uniform(0.5)).receipt["equivalence"]["error"] <= 1e-9
    early = Net(lambda s, x: s.b(s.hidden(x) * torch.rand_like(s.hidden(x))))
    assert coppice.build_space(coppice.trace(early, V)).families == ()


def test_dropout_that_stays_on_freezes() -> None:
    space = coppice.build_space(coppice.trace(Net(lambda s, x: s.b(F.dropout(s.hidden(x), 0.5, True))), V))
    entry = next(e for e in space.frozen if e.axis == "a.weight[out]")
    assert "random numbers in `dropout`" in entry.reason
    assert "self.training" in entry.remedy
    assert coppice.extract(space, space.full()).receipt["equivalence"]["error"] == 0


# ---- types ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_proved_in_fp64(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).to(dtype)
    subnet = cut(model, X.to(dtype), widths={"0": 6})
    assert subnet.receipt["equivalence"]["dtype"] == "float64"
    assert {p.dtype for p in subnet.module.parameters()} == {dtype}
    assert subnet.module(X.to(dtype)).dtype == dtype
    assert type(subnet.module) is nn.Sequential


def test_mixed_precision_in_one_model() -> None:
    net = Net(lambda s, x: s.b(torch.relu(s.a(x.half())).float()))
    net.a.half()
    space = coppice.build_space(coppice.trace(net, V))
    subnet = coppice.extract(space, space.uniform(0.5))
    assert {n: p.dtype for n, p in subnet.module.named_parameters() if "weight" in n} == {
        "a.weight": torch.float16,
        "b.weight": torch.float32,
    }
    assert subnet.module(V).dtype == torch.float32


def test_parameters_without_gradients_stay_so() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    module = cut(model, widths={"0": 6}).module
    assert {n: p.requires_grad for n, p in module.named_parameters()} == {
        "0.weight": False, "0.bias": True, "2.weight": True, "2.bias": True,
    }  # fmt: skip


def test_complex_numbers() -> None:
    def rotary(net: Any, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.view(*x.shape[:-1], 2, 2)) * torch.view_as_complex(net.turns)
        return net.b(net.hidden(torch.view_as_real(pairs).flatten(-2)))

    cut(Net(rotary, turns=torch.randn(2, 2)), widths={"a": 6})
    scaled = Net(lambda s, x: s.b((s.hidden(x) * s.scale).real), scale=nn.Parameter(torch.randn(6) + 1j))
    space = coppice.build_space(coppice.trace(scaled, V))
    assert coppice.extract(space, space.uniform(0.5)).module(V).shape == (2, 2)


def test_no_elements_and_one_channel() -> None:
    empty = Net(
        lambda s, x: s.b(torch.cat([s.hidden(x), x[:, :0]], 1)) + s.none.sum(), none=nn.Parameter(torch.zeros(0, 3))
    )
    cut(empty, widths={"a": 6})
    narrow = nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 6, 1), nn.Conv2d(6, 1, 1))
    cut(narrow, X, widths={"3": 6})


def test_synchronised_norms_and_neighbours() -> None:
    cut(nn.Sequential(nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6), nn.ReLU(), nn.Conv2d(6, 4, 3)), X, widths={"0": 6})
    cut(nn.Sequential(nn.Conv2d(3, 6, 3), nn.LocalResponseNorm(3), nn.ReLU(), nn.Conv2d(6, 4, 3)), X)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_weights(name: str) -> None:
    model = mlp()
    getattr(parametrizations, name)(model[0])
    subnet = cut(model)
    assert type(subnet.module) is nn.Sequential
    assert bool(coppice.build_space(coppice.trace(model, V)).families) == (name == "weight_norm")


def test_weights_made_by_hooks() -> None:
    old, spectral, pruned = mlp(), mlp(), mlp()
    torch.nn.utils.weight_norm(old[0])
    torch.nn.utils.spectral_norm(spectral[0])
    prune.l1_unstructured(pruned[0], "weight", amount=0.5)
    for model in (old, spectral, pruned):
        space = coppice.build_space(coppice.trace(model.eval(), V))
        assert [f.size for f in space.families] == [6]
        assert coppice.extract(space, space.uniform(0.5)).module(V).shape == (2, 2)


# ---- inputs and outputs --------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    y: Tensor
    x: Tensor


OUTPUTS: dict[str, Callable[..., Any]] = {
    "numbers, text and None": lambda s, x: (s.b(s.hidden(x)), 7, "seven", None, 2.5),
    "dict": lambda s, x: {"y": s.b(s.hidden(x)), "none": None, "list": [x]},
    "named tuple": lambda s, x: Pair(s.b(s.hidden(x)), x),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_keep_their_structure(name: str) -> None:
    net = Net(OUTPUTS[name])
    subnet = cut(net, widths={"a": 6})
    for result in (subnet.module(V), subnet.graph.run(V)):
        assert type(result) is type(net(V))
        assert [x for x in tree_leaves(result) if not isinstance(x, Tensor)] == [
            x for x in tree_leaves(net(V)) if not isinstance(x, Tensor)
        ]


@dataclasses.dataclass
class Result:
    y: Tensor


def test_outputs_of_types_of_the_users_own() -> None:
    net = Net(lambda s, x: Result(s.b(s.hidden(x))))
    fails(lambda: coppice.trace(net, V), 3, "returns a Result", "register_dataclass(Result)")
    torch.export.register_dataclass(Result)
    assert isinstance(cut(net, widths={"a": 6}).module(V), Result)


def test_outputs_without_tensors() -> None:
    for result in (None, 3):
        graph = coppice.trace(Net(lambda s, x, result=result: result), V)
        fails(lambda graph=graph: coppice.build_space(graph), 3, "no parameters that its output depends on")  # type: ignore[misc]


INPUTS: dict[str, tuple[Callable[..., Any], Any, bool]] = {
    "*args": (lambda s, *xs: s.b(sum(s.hidden(x) for x in xs)), (V, V + 1), True),
    "one tensor twice": (lambda s, x, y: s.b(s.hidden(x)) - s.b(s.hidden(y)), (V, V), True),
    "**kwargs": (lambda s, **given: s.b(s.hidden(given["x"]) + s.hidden(given["y"])), {"x": V, "y": V + 1}, False),
    "nested": (lambda s, d: s.b(s.hidden(d["a"]) + s.hidden(d["b"][1])), ({"a": V, "b": [V, V + 1]},), True),
    "None": (lambda s, x, mask=None: s.b(s.hidden(x)), (V, None), True),
    "number and text": (lambda s, x, n, how: s.b(getattr(torch, how)(s.a(x))) * n, (V, 3, "relu"), True),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_keep_their_structure(name: str) -> None:
    forward, example, dynamic = INPUTS[name]
    subnet = cut(Net(forward), example, widths={"a": 6})
    assert subnet.receipt["module"]["kind"] == "user"
    assert subnet.graph.batch_dynamic == dynamic


# ---- sizes ---------------------------------------------------------------------------------------------------------


def test_a_model_of_one_batch_size_is_traced_at_that_of_the_example() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return torch.stack([net.b(net.hidden(x[k])) for k in range(x.shape[0])])

    for batch in (1, 3):
        graph = coppice.trace(Net(forward), torch.randn(batch, 4))
        assert not graph.batch_dynamic
        assert graph.placeholders()[0].meta["value"].shape == (batch, 4)
        assert any("one batch size only" in note for note in graph.notes)
        cut(Net(forward), torch.randn(batch, 4), widths={"a": 6})


class Plain(Net):
    """Its input has a name."""

    def forward(self, x: Tensor) -> Any:
        return self.b(self.hidden(x))


DYNAMIC: dict[str, tuple[Any, str]] = {
    "a size that the model fixes": ({"x": {1: torch.export.Dim("n")}}, "specialized it to be a constant (4)"),
    "no argument of forward": ({"y": {0: torch.export.Dim("n")}}, "top-level keys"),
    "an axis too many": ({"x": {5: torch.export.Dim("n")}}, "out of range"),
    "no structure": ("batch", "got <class 'str'>"),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_shapes_that_cannot_be(name: str) -> None:
    dynamic, fact = DYNAMIC[name]
    net = Plain(None)  # type: ignore[arg-type]
    fails(lambda: coppice.trace(net, V, dynamic=dynamic), 2, "dynamic: ", fact, "leave `dynamic` out")
    assert coppice.trace(net, V, dynamic={"x": {0: torch.export.Dim("n")}}).batch_dynamic
    assert not coppice.trace(net, V, dynamic=False).batch_dynamic


# ---- regions -------------------------------------------------------------------------------------------------------


def test_regions_are_part_of_the_graph() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        with torch.enable_grad():
            h = net.hidden(x)
            with torch.no_grad():
                h += 1
                h -= 1
        with torch.autocast("cpu", enabled=False):
            return net.b(h), h.sum(1) * 0

    assert cut(Net(forward)).receipt["module"]["kind"] == "user"


def test_autocast_inside_forward_becomes_casts() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return net.b(net.hidden(x))

    net = Net(forward)
    graph = coppice.trace(net, V)
    assert torch.equal(graph.run(V), net(V))
    assert graph.run(V).dtype == torch.bfloat16
    space = coppice.build_space(graph)
    assert [f.name for f in space.families] == ["a"]
    assert coppice.extract(space, space.uniform(0.5)).receipt["equivalence"]["error"] <= 1e-9


# ---- refused -------------------------------------------------------------------------------------------------------


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, torch.qint8)


def sparse(where: str) -> nn.Module:
    eye = torch.eye(6).to_sparse()
    part = nn.Parameter(eye) if where == "parameter" else eye
    return Net(lambda s, x: s.b(torch.sparse.mm(s.e, s.hidden(x).t()).t()), e=part)


def scripted() -> nn.Module:
    return nn.Sequential(torch.jit.script(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, int, list[str]]] = {
    "quantised": (quantised, V, 3, ["module 0._packed_params", "packed", "before quantisation"]),
    "scripted": (lambda: torch.jit.script(mlp()), V, 3, ["scripted module", "before torch.jit.script"]),
    "jit-traced": (lambda: torch.jit.trace(mlp(), V), V, 3, ["scripted module", "torch.jit.trace"]),
    "scripted part": (scripted, V, 3, ["module 0: it is a scripted module"]),
    "sparse buffer": (lambda: sparse("buffer"), V, 3, ["e: it is a sparse tensor (sparse_coo)", "to_dense()"]),
    "sparse weight": (lambda: sparse("parameter"), V, 3, ["e: it is a sparse tensor"]),
    "sparse input": (mlp, V.to_sparse(), 3, ["an example input: it is a sparse tensor"]),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(6), nn.ReLU()), V, 2, ["module 0: its weight has no shape yet"]),
    "two devices": (lambda: nn.Sequential(mlp(), mlp().to("meta")), V, 2, ["is on cpu and meta"]),
    "a size from data": (
        lambda: Net(lambda s, x: s.b(s.hidden(x)) + torch.zeros(int(x.abs().sum())).sum() if x.shape[0] else x),
        V,
        3,
        ["test_odd_models.py:", "remedy: "],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused(name: str) -> None:
    build, example, code, facts = REFUSED[name]
    fails(lambda: coppice.trace(build(), example), code, *facts)


def test_sizes_that_depend_on_data_are_kept() -> None:
    chosen = Net(lambda s, x: s.b(s.hidden(x)[x[:, 0] > -9]))
    subnet = cut(chosen, widths={"a": 6})
    assert subnet.module(torch.cat([V, V])).shape == (4, 2)


def test_an_empty_part_is_written_and_read() -> None:
    """Windows of video transformers write slices of which some have no position."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            mask = torch.zeros(5, 6)
            for part in (slice(0, 0), slice(0, 3), slice(3, 5)):
                mask[part] = 1.0
            y: Tensor = self.last(torch.cat([h[:, :0], h * mask], 1))
            return y

    space = coppice.build_space(coppice.trace(Windows(), torch.randn(2, 5, 4)))
    for seed in range(3):
        assert coppice.extract(space, space.random(seed)).receipt["equivalence"]["error"] < 1e-12
