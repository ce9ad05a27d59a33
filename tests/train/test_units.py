"""Units as slices of live tensors: gathered, summed, written and zeroed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from coppice import Space
from coppice.passes.train.units import UnitIndex
from prune.nets import space_of
from train.loops import redundant_slices


def some(space: Space, every: int) -> UnitIndex:
    """Every ``every``-th unit of each family."""
    return UnitIndex(space, np.concatenate([f.classes[::every] for f in space.families]))


def copies(space: Space) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in space.graph.tensors.items()}


@pytest.mark.parametrize("name", ["tiny", "densenet", "resnext"])
def test_sums_are_the_spaces_unit_sums(name: str) -> None:
    space = space_of(name)
    tensors = copies(space)
    index = some(space, 1)
    parts = index.gather(tensors)
    expected = space.unit_sums({name: tensors[name] for name in space.graph.parameters()})
    found = index.sums(lambda i: parts[i])
    wanted = np.concatenate([expected[f.classes] for f in space.families])
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_running_means_are_zeroed_but_count_for_nothing() -> None:
    space = space_of("tiny")
    index, tensors = some(space, 1), copies(space)
    assert "norm.running_mean" not in index.names
    tensors["norm.running_mean"].fill_(1e6)
    index.write(tensors, index.gather(tensors))
    assert bool((tensors["norm.running_mean"] == 1e6).all())
    index.zero(tensors, torch.ones(index.count, dtype=torch.bool))
    assert not tensors["norm.running_mean"].any()


def test_a_missing_slice_counts_as_zero() -> None:
    index = some(space_of("tiny"), 1)
    assert not index.sums(lambda _: None).any()


@pytest.mark.parametrize("name", ["tiny", "densenet", "resnext", "vit", "llama"])
@pytest.mark.parametrize("every", [1, 3])
def test_zeroing_units_is_what_the_masked_model_zeroes(name: str, every: int) -> None:
    space = space_of(name)
    keep = {f.name: [i for i in range(f.size) if i % every] or [0] for f in space.families}
    config = space.check(space.full().of(keep))
    gone = [np.delete(f.classes, list(config[f.name])) for f in space.families]
    index = UnitIndex(space, np.concatenate(gone))
    tensors = copies(space)
    index.zero(tensors, torch.ones(index.count, dtype=torch.bool))
    masked = space.masked_tensors(config)
    assert all(torch.equal(tensors[n], masked[n]) for n in tensors)
    assert {n for n, _, _ in redundant_slices(space, config)} >= set(index.names)


def test_zeroing_some_units_leaves_the_others() -> None:
    space = space_of("tiny")
    tensors, index = copies(space), some(space, 1)
    index.zero(tensors, torch.arange(index.count) == 2)
    before = space.graph.tensors
    changed = {n: (t != before[n]).flatten(1 if t.ndim > 1 else 0) for n, t in tensors.items() if n != "out.weight"}
    rows = {n: c.any(1).nonzero().flatten().tolist() if c.ndim > 1 else c.nonzero().flatten().tolist()
            for n, c in changed.items() if bool(c.any())}  # fmt: skip
    assert rows["first.weight"] == [2]
    assert all(where == [2] for where in rows.values())
    assert set(rows) <= {"first.weight", "first.bias", "norm.weight", "norm.bias", "norm.running_mean"}


def test_writing_back_what_was_gathered_changes_nothing() -> None:
    space = space_of("densenet")
    tensors, index = copies(space), some(space, 2)
    index.write(tensors, index.gather(tensors))
    assert all(torch.equal(t, space.graph.tensors[n]) for n, t in tensors.items())


def test_values_per_unit_multiply_their_slices() -> None:
    space = space_of("tiny")
    tensors, index = copies(space), some(space, 1)
    factors = torch.arange(index.count, dtype=torch.float64)
    parts = index.gather(tensors)
    index.write(tensors, [part * index.per_unit(factors, i, part) for i, part in enumerate(parts)])
    units = torch.arange(10, dtype=torch.float32) + 8  # the second family follows the eight units of the first
    torch.testing.assert_close(tensors["second.bias"], space.graph.tensors["second.bias"].detach() * units)


def test_weights_may_live_on_another_device() -> None:
    """Stand-ins for GPU tensors: they have no numbers, but a device, and mixing devices raises."""
    space = space_of("digits")
    index = some(space, 1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {name: torch.empty(t.shape, device="cuda") for name, t in space.graph.tensors.items()}
        parts = index.gather(tensors)
        assert {part.device.type for part in parts} == {"cuda"}
        index.write(tensors, [2 * part for part in parts])
        assert index.select(0, tensors[index.slabs[0].name]).device.type == "cuda"
