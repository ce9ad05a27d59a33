"""From arguments to a call: nothing is copied, bound calls read their buffers anew, and every primitive has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from coppice import kernels
from coppice.kernels import KernelError, Weight, Window, _load
from coppice.kernels._variants import pick
from kernelkit import available

needs_library = pytest.mark.skipif(not kernels.status().library, reason="needs the C library")

EYE = Weight.sparse(np.eye(4, dtype=np.float32))
POINT = Window((1, 1))

#: By primitive: the function, and shapes of the arrays it takes, those before ``out`` by position.
CASES: dict[str, tuple[Any, dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "matmul": (kernels.matmul, {"x": (4, 8), "bias": (4,), "residual": (4, 8), "out": (4, 8)}, {"weight": EYE}),
    "depthwise": (kernels.depthwise, {"weight": (2, 1, 1), "x": (2, 3, 5), "bias": (2,), "out": (2, 3, 5)}, {}),
    "layer_norm": (kernels.layer_norm, {"x": (4, 8), "weight": (4,), "bias": (4,), "out": (4, 8)}, {}),
    "rms_norm": (kernels.rms_norm, {"x": (4, 8), "weight": (4,), "bias": (4,), "out": (4, 8)}, {}),
    "softmax": (kernels.softmax, {"x": (4, 8), "out": (4, 8)}, {}),
    "max_pool": (kernels.max_pool, {"x": (2, 3, 5), "out": (2, 3, 5)}, {"window": POINT}),
    "average_pool": (kernels.average_pool, {"x": (2, 3, 5), "out": (2, 3, 5)}, {"window": POINT}),
    "eltwise": (kernels.eltwise, {"x": (4, 8), "z": (4, 8), "out": (4, 8)}, {}),
}
VARIANTS = ["generic", "numba"] if kernels.status().library else ["numba"]


def arrays(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@needs_library
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("of", [lambda array: array, torch.from_numpy], ids=["numpy", "torch"])
def test_contiguous_arrays_are_not_copied(name: str, of: Callable[[Any], Any]) -> None:
    function, shapes, fixed = CASES[name]
    held = arrays(shapes)
    call = function.__wrapped__(**{key: of(array) for key, array in held.items()}, **fixed)
    ffi = _load.load().ffi
    args = ffi.new(_load.load().arguments(call.primitive)[0])
    alive = call.fill(args)
    for key, array in held.items():
        field = getattr(args, "y" if key == "out" else key)
        assert int(ffi.cast("uintptr_t", field)) == array.ctypes.data
    del alive


@needs_library
def test_a_weight_is_not_copied_either() -> None:
    x, out = np.ones((4, 8), np.float32), np.empty((4, 8), np.float32)
    ffi = _load.load().ffi
    for _ in range(2):
        args = ffi.new("coppice_matmul_args *")
        kernels.matmul.__wrapped__(EYE, x, out=out).fill(args)  # type: ignore[attr-defined]
        assert int(ffi.cast("uintptr_t", args.weight.values)) == EYE.values.ctypes.data
        assert EYE.columns is not None and args.weight.columns[3] == EYE.columns[3]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bound_calls_read_their_buffers_anew(name: str, variant: str) -> None:
    function, shapes, fixed = CASES[name]
    held = arrays(shapes)
    call = function.bind(**held, **fixed, variant=variant)
    for seed in range(3):
        for key, array in arrays(shapes, seed).items():
            held[key][...] = array
        assert call() is None
        expected = function(**{key: array for key, array in held.items() if key != "out"}, **fixed, variant=variant)
        np.testing.assert_array_equal(held["out"], expected)


@pytest.mark.parametrize("name", CASES)
def test_bound_calls_need_somewhere_to_write(name: str) -> None:
    function, shapes, fixed = CASES[name]
    held = arrays(shapes)
    del held["out"]
    with pytest.raises(KernelError, match="out: a bound call writes into the same array"):
        function.bind(**held, **fixed)


@needs_library
def test_bound_calls_keep_what_they_point_to() -> None:
    out = np.zeros((4, 8), np.float32)
    calls = [
        kernels.bind(Weight.sparse(np.eye(4, dtype=np.float32) * k), np.ones((4, 8), np.float32), out=out)
        for k in range(1, 20)
    ]
    noise = [np.full((4, 8), -1, np.float32) for _ in range(100)]
    for k, call in enumerate(calls, 1):
        call()
        assert np.all(out == k)
    del noise


@needs_library
def test_the_choice_of_a_variant_follows_the_limit() -> None:
    library = _load.load()
    before = library.text(library.c.coppice_isa_name(library.c.coppice_isa_active()))
    fastest = pick("matmul", None)
    try:
        library.limit_isa("generic", "a test")
        assert pick("matmul", None).name == "generic"
        if fastest.name != "generic":
            with pytest.raises(kernels.IsaError, match="cannot run"):
                pick("matmul", fastest.name)
    finally:
        library.limit_isa(before, "a test")
    assert pick("matmul", None) == fastest
    assert fastest.name in available("matmul")


def test_functions_say_what_they_take() -> None:
    """Though what computes is behind what checks: the signature and the documentation are those of the primitive."""
    import inspect

    for function, _, _ in CASES.values():
        assert {"out", "variant"} <= set(inspect.signature(function).parameters)
        assert "Args:" in function.__doc__ or "Arguments and errors" in function.__doc__
        assert "checks the arguments once" in function.bind.__doc__.lower()
