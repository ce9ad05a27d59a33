"""The zoo checks itself: models run, export and repeat, every trap's verdict is compared with a resized net."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from zoo import MODELS, TRAPS, Case

ALL = {**MODELS, **TRAPS}
FAST = [case for case in ALL.values() if not case.slow]
VERDICTS = ("expect", "may", "later", "expect_frozen")

# Units removed from a trap's axis of eight: by default one in each half, else those that must go together.
REMOVED: dict[str, tuple[int, ...]] = {
    "group_norm": (2, 3),
    "chunk_swap": (1, 5),
    "chunk_unequal_use": (1, 5),
    "split_unequal_sizes": (1, 5),
    "channel_shuffle": (1, 5),
    "einops_chain": (1, 5),
    "slice_prefix": (5, 7),
    "slice_stride": (2, 3),
    "conv_grouped": (1, 5),
    "transposed_grouped": (1, 5),
}
# Axes whose positions are not the units themselves nor whole copies of them (``unit + copy * width``).
BLOCKS = {  # positions unit * size .. unit * size + size - 1
    ("repeat_interleave", "conv2.weight"),
    ("expand_back", "conv2.weight"),
    ("stack_interleaved", "conv2.weight"),
    ("pixel_shuffle", "conv1.weight"),
    ("pixel_shuffle", "conv1.bias"),
    ("pixel_unshuffle", "conv2.weight"),
    ("maxout", "conv1.weight"),
    ("maxout", "conv1.bias"),
    ("flatten_linear", "out.weight"),
    ("unfold_linear", "out.weight"),
    ("depth_multiplier", "middle.weight"),
    ("depth_multiplier", "middle.bias"),
    ("depth_multiplier", "out.weight"),
    ("hypernetwork", "generate.weight"),
    ("hypernetwork", "generate.bias"),
}
CROSSES = tuple(i for i in range(64) if {i // 8, i % 8} & {2, 5})  # rows and columns 2 and 5 of an 8x8 square
POSITIONS: dict[tuple[str, str, int], tuple[int, ...]] = {
    ("pad_one", "conv2.weight", 1): (3, 6),
    ("pad_zero", "conv2.weight", 1): (3, 6),
    ("input_cat", "out.weight", 1): (2, 5),
    ("channel_shuffle", "conv2.weight", 1): (2, 3),
    ("roll", "conv2.weight", 1): (4, 7),
    ("slice_stride", "conv2.weight", 1): (1,),
    ("chunk_unequal_use", "out_a.weight", 1): (1,),
    ("chunk_unequal_use", "out_b.weight", 1): (1,),
    ("split_unequal_sizes", "out_a.weight", 1): (1,),
    ("split_unequal_sizes", "out_b.weight", 1): (2,),
    ("conv_grouped", "middle.weight", 1): (1,),
    ("transposed_grouped", "middle.weight", 1): (1,),
    ("outer_product", "conv2.weight", 1): CROSSES,
    ("gram_flatten", "out.weight", 1): CROSSES,
}


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def positions(case: Case, name: str, dim: int, size: int) -> tuple[int, ...]:
    units = REMOVED.get(case.name, (2, 5))
    if (case.name, name, dim) in POSITIONS:
        return POSITIONS[case.name, name, dim]
    assert size % case.width == 0, f"{case.name}: which positions of {name} axis {dim} belong to {units}?"
    copies = size // case.width
    if (case.name, name) in BLOCKS:
        return tuple(unit * copies + copy for unit in units for copy in range(copies))
    return tuple(unit + copy * case.width for unit in units for copy in range(copies))


def without(value: Tensor, dim: int, removed: tuple[int, ...]) -> Tensor:
    return value.index_select(dim, torch.tensor([i for i in range(value.shape[dim]) if i not in removed]))


def masked_and_small(case: Case) -> tuple[torch.nn.Module, torch.nn.Module, set[str]]:
    """The full model with its producing slices zeroed, the resized model with the kept slices, and what was zeroed."""
    assert case.resize is not None
    full = case.build().double()
    small = case.resize(case.width - len(REMOVED.get(case.name, (2, 5)))).double()
    state, resized = full.state_dict(), small.state_dict()
    producers = {name for verdict in VERDICTS[:3] for name in case.names(full, verdict)} | {
        name for name in case.names(full, "expect_frozen") if not name.startswith(("out", "conv2"))
    }
    zeroed: set[str] = set()
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        part = value
        for dim, (before, after) in enumerate(zip(value.shape, resized[name].shape, strict=True)):
            if before == after:
                continue
            removed = positions(case, name, dim, before)
            part = without(part, dim, removed)
            produces = name in producers and dim == case.axis(name) and not name.endswith("original1")
            if produces or name.endswith("running_mean"):
                value.index_fill_(dim, torch.tensor(removed), 0)
                zeroed.add(name)
        kept[name] = part
    small.load_state_dict(kept)
    return full, small, zeroed


@pytest.mark.parametrize("case", FAST, ids=lambda case: case.name)
def test_model_runs_repeats_and_has_double_precision(case: Case) -> None:
    model, again = case.build(), case.build()
    assert not model.training
    two = tensors(case.run(model, 2))
    assert all(torch.isfinite(value).all() for value in two)
    assert all(torch.equal(a, b) for a, b in zip(two, tensors(case.run(again, 2)), strict=True))
    assert all(value.shape[0] == 3 for value in tensors(case.run(model, 3)))
    precise = tensors(case.run(again.double(), 2, torch.float64))
    for value, reference in zip(two, precise, strict=True):
        assert reference.dtype == torch.float64
        torch.testing.assert_close(value.double(), reference, rtol=1e-3, atol=1e-4 * float(1 + reference.abs().max()))


@pytest.mark.parametrize("case", FAST, ids=lambda case: case.name)
def test_model_exports(case: Case) -> None:
    model = case.build()
    args, kwargs = case.args(2)
    exported = torch.export.export(model, args, kwargs, strict=False).module()
    with torch.no_grad():
        got = tensors(exported(*args, **kwargs))
    for value, reference in zip(got, tensors(case.run(model, 2)), strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ALL.values(), ids=lambda case: case.name)
def test_every_parameter_has_one_verdict(case: Case) -> None:
    model = case.build()
    judged = [name for verdict in VERDICTS for name in case.names(model, verdict)]
    assert sorted(judged) == sorted(name for name, _ in model.named_parameters())
    for verdict in VERDICTS:
        for pattern in getattr(case, verdict):
            alone = Case(case.name, case.family, case.build, case.inputs, expect=(pattern,))
            assert alone.names(model, "expect"), f"{pattern} selects nothing"


@pytest.mark.parametrize("case", [case for case in TRAPS.values() if case.resize], ids=lambda case: case.name)
def test_trap_verdict_is_what_a_hand_built_subnet_shows(case: Case) -> None:
    full, small, zeroed = masked_and_small(case)
    assert zeroed
    exact = zeroed <= {*case.names(full, "expect"), *case.names(full, "may")} | {n for n in zeroed if "running" in n}
    masked, subnet = tensors(case.run(full, 2, torch.float64)), tensors(case.run(small, 2, torch.float64))
    shapes = [value.shape for value in masked] == [value.shape for value in subnet]
    same = shapes and all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(masked, subnet, strict=True))
    assert same == exact
