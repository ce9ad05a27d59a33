"""Ops without a row: what the probe finds, what it says where it finds nothing, and how such graphs are kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import coppice
import customops
from coppice import Space
from coppice.core.errors import EquivalenceError, UsageError
from coppice.core.ops import probe, trials
from coppice.core.text import from_text, to_text
from coppice.passes.extract.check import difference
from customops import EVEN_BLIND, MISCHIEF, affine, mischief, pair, parts, secretly, swish
from zoo.case import randomise

Op = Callable[[nn.Module, Tensor], Tensor]


class Around(nn.Module):
    """linear -> op -> linear; the op may use the parameters ``scale`` and ``shift``."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
        self.b = nn.Linear(8, 3)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.op(self, self.a(x)))
        return result


def space_of(op: Op, device: str = "cpu") -> Space:
    model = Around(op)
    randomise(model)
    return coppice.build_space(coppice.trace(model.eval().to(device), torch.randn(2, 6)))


def cuts(space: Space) -> set[str]:
    return {str(s) for family in space.families for s in family.slices}


def reason(space: Space) -> str:
    return next(entry.reason for entry in space.frozen if entry.axis == "a.weight[out]")


# ---- good ones -----------------------------------------------------------------------------------------------------


GOOD: dict[str, tuple[Op, set[str]]] = {
    "elementwise": (lambda m, x: swish(x, 1.5), set()),
    "affine": (lambda m, x: affine(x, m.scale, m.shift), {"scale[0]", "shift[0]"}),
    "two results": (lambda m, x: parts(x)[0] * 2 + parts(x)[1], set()),
    "logarithm": (lambda m, x: mischief(x, "is a logarithm", 1.0), set()),
    "a list of tensors": (lambda m, x: pair([x, m.scale], "product")[0], {"scale[0]"}),
    "one tensor twice": (lambda m, x: pair([x, x], "quotient")[0], set()),
    "over the batch": (lambda m, x: mischief(x, "folds the batch", 1.0), set()),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_keeps_units_apart_lets_them_leave(name: str) -> None:
    op, more = GOOD[name]
    space = space_of(op)
    assert cuts(space) == {"a.weight[out]", "a.bias[out]", "b.weight[in]", *more}
    for config in (space.uniform(0.5), space.random(3)):
        subnet = coppice.extract(space, config)
        assert subnet.receipt["equivalence"]["error"] <= 1e-9
        assert subnet.receipt["module"]["kind"] == "user"


class Image(nn.Module):
    """conv -> op -> conv on images large enough to be tried at a shorter size first."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(16)), nn.Parameter(torch.rand(16))
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.op(self, self.a(x)))
        return result


def image_space(op: Op) -> Space:
    return coppice.build_space(coppice.trace(Image(op).eval(), torch.randn(2, 3, 20, 22)))


def test_an_image_and_its_channels() -> None:
    space = image_space(lambda m, x: affine(x, m.scale, m.shift))
    assert [f.size for f in space.families] == [16]
    assert coppice.extract(space, space.uniform(0.25)).receipt["equivalence"]["error"] <= 1e-9


def test_what_is_tried_at_a_shorter_size_is_tried_again_at_its_own() -> None:
    space = image_space(lambda m, x: mischief(x, "mixes wide images", 1.0))
    assert not space.families
    assert "moves all of axis 1" in reason(space)


def test_meta_tensors_are_probed_with_real_ones() -> None:
    space = space_of(GOOD["affine"][0], device="meta")
    assert cuts(space) == cuts(space_of(GOOD["affine"][0]))


def test_an_aten_op_without_a_row_is_probed_too() -> None:
    """A grid sampler moves places, not channels."""

    class Sampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)
            self.register_buffer("grid", torch.rand(1, 4, 4, 2) * 2 - 1)

        def forward(self, x: Tensor) -> Tensor:
            grid = self.get_buffer("grid").expand(x.shape[0], -1, -1, -1)
            result: Tensor = self.b(torch.grid_sampler(self.a(x), grid, 0, 0, False))
            return result

    space = coppice.build_space(coppice.trace(Sampled().eval(), torch.randn(2, 3, 8, 8)))
    assert [f.name for f in space.families] == ["a"]
    assert coppice.extract(space, space.uniform(0.5)).receipt["equivalence"]["error"] <= 1e-9


# ---- what a removed slice holds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "fact"),
    [
        (lambda m, x: mischief(x, "is a sigmoid", 1.0), "the constant 0.5"),
        (lambda m, x: mischief(x, "adds a constant", 0.25), "the constant 0.25"),
        (lambda m, x: mischief(x, "divides by itself", 1.0), "NaN or infinity"),
        (lambda m, x: affine(x, m.scale, torch.full((8,), 2.0)), "the constant 2"),
    ],
    ids=["sigmoid", "plus", "zero over zero", "shift"],
)
def test_what_a_removed_slice_holds_is_known(op: Op, fact: str) -> None:
    space = space_of(op)
    if cuts(space):  # a constant may be folded into the next bias
        assert "constant" in fact
        assert coppice.extract(space, space.uniform(0.5)).receipt["equivalence"]["error"] <= 1e-9
    else:
        assert fact in reason(space)


# ---- bad ones ------------------------------------------------------------------------------------------------------


REASONS = {
    "mixes": "moves all of axis 1 when one position of `x` moves",
    "mixes one pair": "moves other positions of axis 1",
    "mixes in fp32": "moves all of axis 1",
    "mixes large values": "moves all of axis 1",
    "divides by the count": "computes something else for the other positions where axis 1 of `x` is shorter",
    "knows four channels": "computes something else",
    "adds positions": "computes something else",
    "sorts": "moves",
    "draws": "draws random numbers",
    "counts calls": "is not deterministic",
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_does_not_is_frozen_and_the_finding_is_told(kind: str) -> None:
    space = space_of(lambda m, x: mischief(x, kind, 50.0))
    assert not space.families
    assert reason(space).startswith("reaches `coppice_tests.mischief`, which ")
    assert REASONS[kind] in reason(space)


def test_two_results_one_of_which_follows_no_unit() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        first, second = pair([x, torch.relu(x)], "product with the mean")
        return torch.mul(first, second)

    space = space_of(body)
    assert not space.families
    assert "moves all of axis 1 when one position of `argument 1` moves" in reason(space)


def test_an_op_that_changes_its_input_is_frozen() -> None:
    assert "changes its input" in reason(space_of(lambda m, x: secretly(x)))


def test_an_op_that_cannot_run_here_is_frozen() -> None:
    assert "could not be run on sample inputs: 'nothing'" in reason(space_of(lambda m, x: mischief(x, "nothing", 1.0)))


def test_large_tensors_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MOST_NUMBERS", 10)
    assert "too many to be tried" in reason(space_of(lambda m, x: swish(x, 2.5)))


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "MOST_SECONDS", -1.0)
    assert "takes too long" in reason(space_of(lambda m, x: swish(x, 3.5)))


@pytest.mark.parametrize("kind", sorted(MISCHIEF))
def test_no_mischief_gives_a_wrong_subnet(kind: str) -> None:
    space = space_of(lambda m, x: mischief(x, kind, 50.0))
    for seed in range(2):
        try:
            subnet = coppice.extract(space, space.random(seed))
        except EquivalenceError:
            assert kind in EVEN_BLIND, "only what is not a function can differ from itself"
            return
        if kind in EVEN_BLIND:
            assert not space.families, "nothing is cut that such an op reads"
            return
        for scale in (1e-2, 1.0, 1e3):
            x = torch.randn(3, 6) * scale
            with torch.no_grad():
                assert difference(subnet.reference()(x), subnet.module(x)) < 1e-4


def test_findings_are_kept_and_the_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    state = customops.CALLS[0]
    graph = coppice.trace(Around(lambda m, x: mischief(x, "counts calls", 7.0)).eval(), torch.ones(2, 6))
    torch.set_rng_state(before)
    coppice.build_space(graph)
    called = customops.CALLS[0]
    assert called > state
    coppice.build_space(graph)
    assert customops.CALLS[0] == called
    assert torch.equal(torch.get_rng_state(), before)


# ---- the text form and saved subnets -------------------------------------------------------------------------------


def test_text_and_folder_hold_custom_ops(tmp_path: Path) -> None:
    space = space_of(GOOD["affine"][0])
    subnet = coppice.extract(space, space.uniform(0.5))
    text = to_text(subnet.graph)
    assert "= coppice_tests.affine.default(" in text
    graph = subnet.graph
    back = from_text(text, graph.tensors, in_spec=graph.in_spec, out_spec=graph.out_spec)
    assert to_text(back) == text
    loaded = coppice.load(subnet.save(tmp_path / "subnet"))
    x = torch.randn(3, 6)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), subnet.module(x))


def test_loading_where_the_op_is_unknown_names_what_to_import(tmp_path: Path) -> None:
    space = space_of(GOOD["affine"][0])
    folder = coppice.extract(space, space.uniform(0.5)).save(tmp_path / "subnet")
    code = f"import coppice\ntry:\n    coppice.load({str(folder)!r})\nexcept coppice.UsageError as e:\n    print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "there is no op called coppice_tests.affine.default" in done.stdout
    assert "import the module that defines coppice_tests::affine first" in done.stdout


@pytest.mark.parametrize(
    "name",
    ["os.system.default", "coppice_tests.scale_.default", "coppice_tests.__class__.default", "a.b.c", "library.x.y"],
)
def test_nothing_but_a_registered_function_is_called_from_text(name: str) -> None:
    with pytest.raises(UsageError, match=r"there is no op called"):
        from_text(f"def g(x: f32[2]):\n    y: f32[2] = {name}(x)\n    return (y,)\n", {})
