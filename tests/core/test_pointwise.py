"""The rule for elementwise ops: what it claims of a removed slice holds whatever the other operands are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, fx

from coppice.core.calls import Call
from coppice.core.graph import Value
from coppice.core.labels import POISON, UNKNOWN
from coppice.core.ops import lookup
from coppice.core.ops.pointwise import carry_through

aten = torch.ops.aten
Make = Callable[..., Any]

NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 0.3, 0.1, 2.0, 3.0, -2.0, 6.0, 1e-3, -1e-3, 1e-12, 7.25, 100.0, -100.0, 1e6)
"""What an open operand is set to here: zero, round numbers, the literals of the ops below, small and large ones."""


def call_of(target: Any, *arguments: Any, dtypes: dict[int, torch.dtype] | None = None) -> Call:
    """A call of ``target``; ``...`` stands for a tensor operand (float32, or as ``dtypes`` says of that place)."""
    graph = fx.Graph()
    made: list[Any] = []
    for place, argument in enumerate(arguments):
        if argument is not ...:
            made.append(argument)
            continue
        node = graph.placeholder(f"x{place}")
        node.meta["value"] = Value((2, 8), (dtypes or {}).get(place, torch.float32))
        made.append(node)
    node = graph.call_function(target, tuple(made))
    node.meta["value"] = Value((2, 8), torch.float32)
    return Call(node)


def claim(call: Call, **known: float) -> float:
    """What the rule says of one position where the operands of these names hold these numbers."""
    names = [name for name, _ in call.tensors()]
    carries = {name: np.array([known.get(name, UNKNOWN)]) for name in names}
    return float(carry_through(call, carries)[0])


def direct(call: Call, values: dict[str, float]) -> float:
    """The op itself on these numbers, in fp64."""
    dtypes = {name: node.meta["value"].dtype for name, node in call.tensors()}
    tensors = {
        n: torch.tensor(v, dtype=torch.float64 if dtypes[n].is_floating_point else dtypes[n]) for n, v in values.items()
    }
    result: Tensor = call.target(**{**call.arguments, **tensors})  # type: ignore[operator]
    return float(result)


UNARY: list[tuple[Any, tuple[Any, ...], float]] = [  # the op, its arguments, and what it makes of zero
    (aten.relu.default, (...,), 0.0),
    (aten.gelu.default, (...,), 0.0),
    (aten.silu.default, (...,), 0.0),
    (aten.tanh.default, (...,), 0.0),
    (aten.hardswish.default, (...,), 0.0),
    (aten.mish.default, (...,), 0.0),
    (aten.elu.default, (...,), 0.0),
    (aten.leaky_relu.default, (...,), 0.0),
    (aten.softshrink.default, (...,), 0.0),
    (aten.sqrt.default, (...,), 0.0),
    (aten.neg.default, (...,), 0.0),
    (aten.erf.default, (...,), 0.0),
    (aten.log1p.default, (...,), 0.0),
    (aten.abs.default, (...,), 0.0),
    (aten.pow.Tensor_Scalar, (..., 2), 0.0),
    (aten.mul.Tensor, (..., 3.0), 0.0),
    (aten.div.Tensor, (..., 3.0), 0.0),
    (aten.gt.Scalar, (..., 0), 0.0),
    (aten.clamp.default, (..., -1.0, 1.0), 0.0),
    (aten.sigmoid.default, (...,), 0.5),
    (aten.hardsigmoid.default, (...,), 0.5),
    (aten.softplus.default, (...,), math.log(2.0)),
    (aten.exp.default, (...,), 1.0),
    (aten.cos.default, (...,), 1.0),
    (aten.add.Tensor, (..., 0.25), 0.25),
    (aten.rsub.Scalar, (..., 1.0), 1.0),
    (aten.clamp.default, (..., 0.1, None), 0.1),
    (aten.threshold.default, (..., 0.1, 0.2), 0.2),
    (aten.ge.Scalar, (..., 0), 1.0),
    (aten.pow.Tensor_Scalar, (..., 0), 1.0),
    (aten.logical_not.default, (...,), 1.0),
    (aten.reciprocal.default, (...,), POISON),
    (aten.log.default, (...,), POISON),
    (aten.rsqrt.default, (...,), POISON),
]


@pytest.mark.parametrize(("target", "arguments", "expected"), UNARY, ids=lambda value: str(value))
def test_zero_becomes_a_known_number(target: Any, arguments: tuple[Any, ...], expected: float) -> None:
    call = call_of(target, *arguments)
    name = call.tensors()[0][0]
    assert claim(call, **{name: 0.0}) == pytest.approx(expected, abs=1e-15)
    if not math.isinf(expected):
        assert direct(call, {name: 0.0}) == claim(call, **{name: 0.0})


@pytest.mark.parametrize(("target", "arguments"), [(t, a) for t, a, _ in UNARY], ids=str)
def test_another_constant_is_computed_too(target: Any, arguments: tuple[Any, ...]) -> None:
    call = call_of(target, *arguments)
    name = call.tensors()[0][0]
    for value in (0.5, 2.0):
        assert claim(call, **{name: value}) == direct(call, {name: value})


@pytest.mark.parametrize(("target", "arguments"), [(t, a) for t, a, _ in UNARY], ids=str)
def test_an_unknown_operand_stays_unknown(target: Any, arguments: tuple[Any, ...]) -> None:
    call = call_of(target, *arguments)
    if target is aten.pow.Tensor_Scalar and arguments[1] == 0:
        assert claim(call) == 1.0, "x ** 0 is one for every x"
    else:
        assert math.isnan(claim(call))


BOOL = {0: torch.bool}
OPEN: dict[str, Call] = {  # ops that are flat over wide ranges of an operand that is not known
    "x > 0": call_of(aten.gt.Scalar, ..., 0),
    "x >= 100": call_of(aten.ge.Scalar, ..., 100.0),
    "x < -2": call_of(aten.lt.Scalar, ..., -2),
    "x == 0": call_of(aten.eq.Scalar, ..., 0),
    "x != 0": call_of(aten.ne.Scalar, ..., 0),
    "x == 0.3": call_of(aten.eq.Scalar, ..., 0.3),
    "x != 7.25": call_of(aten.ne.Scalar, ..., 7.25),
    "threshold": call_of(aten.threshold.default, ..., 0.1, 0.2),
    "far threshold": call_of(aten.threshold.default, ..., 1e6, 0.2),
    "hardshrink": call_of(aten.hardshrink.default, ..., 100.0),
    "clamp": call_of(aten.clamp.default, ..., -1.0, 1.0),
    "narrow clamp": call_of(aten.clamp.default, ..., 0.3, 0.3),
    "relu6": call_of(aten.relu6.default, ...),
    "sign": call_of(aten.sign.default, ...),
    "floor": call_of(aten.floor.default, ...),
    "not": call_of(aten.logical_not.default, ...),
    "and": call_of(aten.logical_and.default, ..., ...),
    "or": call_of(aten.logical_or.default, ..., ...),
    "x > y": call_of(aten.gt.Tensor, ..., ...),
    "x == y": call_of(aten.eq.Tensor, ..., ...),
    "x + y": call_of(aten.add.Tensor, ..., ...),
    "x * y": call_of(aten.mul.Tensor, ..., ...),
    "x / y": call_of(aten.div.Tensor, ..., ...),
    "maximum": call_of(aten.maximum.default, ..., ...),
    "minimum": call_of(aten.minimum.default, ..., ...),
    "pow": call_of(aten.pow.Tensor_Tensor, ..., ...),
    "atan2": call_of(aten.atan2.default, ..., ...),
    "lerp": call_of(aten.lerp.Scalar, ..., ..., 0.3),
    "remainder": call_of(aten.remainder.Scalar, ..., 1.0),
    "where": call_of(aten.where.self, ..., ..., ..., dtypes=BOOL),
    "masked_fill": call_of(aten.masked_fill.Scalar, ..., ..., 0.3, dtypes={1: torch.bool}),
    "addcmul": call_of(aten.addcmul.default, ..., ..., ...),
    "heaviside": call_of(aten.heaviside.default, ..., ...),
}
VALUES = st.one_of(st.sampled_from(NUMBERS), st.floats(-1e3, 1e3))


@given(
    st.sampled_from(sorted(OPEN)), st.lists(st.none() | VALUES, min_size=3, max_size=3), st.lists(VALUES, min_size=3)
)
@example("x == 0.3", [None, None, None], [0.3, 0.0, 0.0])
@example("x != 0", [None, None, None], [0.0, 0.0, 0.0])
@example("x == y", [None, 0.5, None], [0.5, 0.0, 0.0])
@example("and", [None, None, None], [0.0, 0.0, 0.0])
def test_a_claim_holds_for_any_other_operand(name: str, known: list[float | None], other: list[float]) -> None:
    """Known operands hold what is known of them, the others anything: a claimed number is what the op computes."""
    call = OPEN[name]
    names = [n for n, _ in call.tensors()]
    integral = {n: not node.meta["value"].dtype.is_floating_point for n, node in call.tensors()}
    fixed = {n: float(v != 0) if integral[n] else v for n, v in zip(names, known, strict=False) if v is not None}
    claimed = claim(call, **fixed)
    values = {n: fixed.get(n, float(v != 0) if integral[n] else v) for n, v in zip(names, other, strict=False)}
    found = direct(call, values)
    if math.isfinite(claimed) and math.isfinite(found):  # where the op is undefined, it is so before a cut as after it
        assert claimed == found
    if len(fixed) == len(names):
        assert claimed == found or (math.isinf(claimed) and not math.isfinite(found))


def test_a_claim_holds_for_every_pair_of_numbers() -> None:
    """The same, for all ops on all pairs of `NUMBERS`: what looks constant on some probes is not claimed."""
    for name, call in OPEN.items():
        names = [n for n, _ in call.tensors()]
        claimed = claim(call)
        if math.isnan(claimed):
            continue
        for values in itertools.product(NUMBERS, repeat=len(names)):
            assert direct(call, dict(zip(names, values, strict=True))) == claimed, name
    assert claim(OPEN["narrow clamp"]) == 0.3, "this one is constant"


def test_zero_times_anything_is_zero() -> None:
    product, quotient = OPEN["x * y"], OPEN["x / y"]
    assert claim(product, self=0.0) == 0.0
    assert claim(product, other=0.0) == 0.0
    assert claim(quotient, self=0.0) == 0.0, "but for 0 / 0, which no cut makes or mends"
    assert claim(quotient, self=0.0, other=0.0) == POISON
    assert math.isnan(claim(quotient, other=2.0))
    assert claim(product, self=0.0, other=POISON) == POISON


def test_where_chooses() -> None:
    call = OPEN["where"]
    assert claim(call, self=0.0, other=0.0) == 0.0, "both branches agree"
    assert math.isnan(claim(call, self=0.0, other=0.3))
    assert claim(call, condition=1.0, self=0.0) == 0.0
    assert claim(call, condition=0.0, other=0.3) == pytest.approx(0.3)


def test_many_positions_at_once() -> None:
    """Each position has its own numbers; POISON and UNKNOWN mix with them."""
    call = call_of(aten.add.Tensor, ..., ...)
    one, two = np.array([0.0, 1.0, UNKNOWN, 0.0, POISON]), np.array([0.0, 0.5, 0.0, UNKNOWN, 0.0])
    got = carry_through(call, {"self": one, "other": two})
    assert np.array_equal(got, np.array([0.0, 1.5, UNKNOWN, UNKNOWN, POISON]), equal_nan=True)


def test_a_size_that_changes_is_no_constant() -> None:
    """``x + x.shape[0]``: the number is known only when the model runs."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["value"] = Value((2, 8), torch.float32)
    size = graph.call_function(aten.sym_size.int, (x, 0))
    size.meta["value"] = Value((), None, (), 2)
    node = graph.call_function(aten.add.Tensor, (x, size))
    node.meta["value"] = Value((2, 8), torch.float32)
    assert math.isnan(claim(Call(node), self=0.0))


@pytest.mark.parametrize("target", [aten.gt.Scalar, aten.where.self, aten.lerp.Scalar, aten.hypot.default], ids=str)
def test_torch_s_own_mark_is_enough_for_a_row(target: Any) -> None:
    assert lookup(target) is not None


@pytest.mark.parametrize("target", [aten.multinomial.default, aten.histc.default, aten.bernoulli.default], ids=str)
def test_other_ops_have_no_row(target: Any) -> None:
    assert lookup(target) is None
