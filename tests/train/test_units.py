"""Units as slices of live tensors: gathered, summed, written and zeroed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from coppice import Space, build_space, trace
from coppice.passes.train.units import UnitIndex
from coppice.passes.train.zeros import Zeros
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


def test_whole_tensors_are_units_of_their_own_beside_classes() -> None:
    """Each position along axis 0 of a named tensor is a unit; a tensor without axes is one."""
    space = space_of("tiny")
    tensors = copies(space)
    whole = ["hidden.weight", "norm.running_var", "out.bias", "norm.num_batches_tracked"]
    whole = [name for name in whole if name in tensors]
    index = UnitIndex(space, space.families[0].classes, whole)
    assert index.count == 8 + 12 + 8 + 3 + len(whole[3:])
    parts = index.gather(tensors)
    squares = index.squares(parts)
    torch.testing.assert_close(squares[8:20], tensors["hidden.weight"].double().square().sum(1), rtol=1e-5, atol=1e-8)
    assert not squares[20:28].any()  # a buffer counts for nothing
    which = torch.zeros(index.count, dtype=torch.bool)
    which[[0, 9, 21, 28]] = True
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    index.zero(tensors, which)
    assert not tensors["first.weight"][0].any()
    assert not tensors["hidden.weight"][1].any()
    assert tensors["norm.running_var"][1] == 0
    assert tensors["out.bias"][0] == 0
    for name, gone in (("hidden.weight", 1), ("norm.running_var", 1), ("out.bias", 0)):
        left = [i for i in range(len(tensors[name])) if i != gone]
        assert torch.equal(tensors[name][left], before[name][left])
    assert torch.equal(tensors["second.weight"], before["second.weight"])


class Scaled(torch.nn.Module):
    """A parameter without axes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.a, self.b = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(torch.relu(self.a(x))) * self.scale
        return result


@pytest.mark.parametrize("often", [False, True])
def test_a_tensor_without_axes_is_one_unit(often: bool) -> None:
    space = build_space(trace(Scaled().eval(), torch.randn(3, 4)))
    tensors = copies(space)
    index = UnitIndex(space, np.zeros(0, np.int64), ["scale", "a.weight"])
    assert index.count == 7
    assert index.squares(index.gather(tensors))[0] == 4.0
    assert index.sizes().tolist() == [1.0] + [4.0] * 6
    index.write(tensors, [3 * part for part in index.gather(tensors)])
    assert tensors["scale"] == 6.0
    index.scale(tensors, torch.full((7,), 0.5, dtype=torch.float64))
    assert tensors["scale"] == 3.0
    zeros = Zeros(index, torch.arange(7) == 0)
    for _ in range(2):
        tensors["scale"].fill_(1.0)
        zeros.apply(tensors, often)
        assert tensors["scale"] == 0.0
    assert bool(tensors["a.weight"].all())


def some_of(space: Space) -> UnitIndex:
    return UnitIndex(space, space.families[0].classes)


def test_slices_in_a_whole_tensor_are_left_to_it() -> None:
    space = space_of("tiny")
    index = UnitIndex(space, space.families[0].classes, ["first.weight"])
    assert [slab.name for slab in index.slabs].count("first.weight") == 1
    sums, plain = (i.squares(i.gather(space.graph.tensors)) for i in (index, some_of(space)))
    weight = space.graph.tensors["first.weight"].detach().double().square().flatten(1).sum(1)
    torch.testing.assert_close(sums[8:], weight, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(sums[:8] + weight, plain, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["tiny", "densenet", "resnext", "vit"])
def test_shares_are_the_spaces_magnitudes(name: str) -> None:
    space = space_of(name)
    found = some(space, 1).shares(space.graph.tensors).numpy()
    wanted = np.concatenate([space.magnitudes()[f.name] for f in space.families])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["tiny", "densenet", "resnext"])
def test_zeros_held_often_are_those_set_once_and_follow_moved_memory(name: str) -> None:
    space = space_of(name)
    once, held = copies(space), copies(space)
    index = some(space, 2)
    index.zero(once, torch.ones(index.count, dtype=torch.bool))
    zeros = Zeros(index, torch.ones(index.count, dtype=torch.bool))
    for _ in range(2):
        zeros.apply(held, often=True)
        assert all(torch.equal(held[n], once[n]) for n in once)
        held = copies(space)  # other memory under the same names
    zeros.apply(held, often=True)
    assert all(torch.equal(held[n], once[n]) for n in once)


def test_products_and_squares_are_sums_of_products() -> None:
    space = space_of("resnext")
    index, tensors = some(space, 1), copies(space)
    parts = index.gather(tensors)
    others = [torch.randn_like(part) for part in parts]
    wanted = index.sums(lambda i: parts[i] * others[i])
    torch.testing.assert_close(index.products(parts, others), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(index.squares(parts), index.sums(lambda i: parts[i] ** 2), rtol=1e-5, atol=1e-6)
    assert not index.products(parts, [None] * len(parts)).any()
