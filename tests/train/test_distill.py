"""Distillation: the loss of soft targets, features cut to the units that stayed, outputs of any form."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coppice import Config, Distillation, Subnet, UsageError, build_space, compress, extract, trace
from coppice.passes.train.distill import feature_gap, logits_of, soft_targets
from zoo import MODELS


def cut(name: str) -> tuple[nn.Module, Subnet, Any]:
    case = MODELS[name]
    model = case.build()
    args, kwargs = case.args(4)
    space = build_space(trace(model, kwargs or args))
    return model, extract(space, space.uniform(0.5)), args or kwargs


def test_soft_targets_are_the_divergence_of_softened_distributions() -> None:
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(soft_targets(student, teacher, 3.0), expected)
    maps = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    rows = [x.movedim(1, -1).reshape(-1, 5) for x in maps]
    torch.testing.assert_close(soft_targets(*maps, axis=1), soft_targets(rows[0], rows[1]))
    assert float(soft_targets(teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_gradients_do_not_shrink_with_the_temperature() -> None:
    """At high temperatures the gradient tends to that of a mean square, independent of T."""
    teacher = torch.randn(8, 10)

    def slope(temperature: float) -> Tensor:
        student = torch.zeros(8, 10, requires_grad=True)
        return torch.autograd.grad(soft_targets(student, teacher, temperature), student)[0]

    torch.testing.assert_close(slope(50.0), slope(200.0), rtol=0.05, atol=1e-4)


def test_half_precision_is_widened() -> None:
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    found = soft_targets(student.bfloat16(), teacher.bfloat16())
    assert found.dtype is torch.float32
    assert feature_gap(student.half(), teacher.half()).dtype is torch.float32


def test_the_teachers_features_are_cut_to_the_units_that_stayed() -> None:
    """A subnet of units that were zero has the features of its teacher: the gap is zero, and not without the cut."""
    model, subnet, (x,) = cut("digits")
    teacher = subnet.reference()
    distillation = Distillation(teacher, subnet, features=["block1", "block2.bn1", "block2"])
    loss = distillation(subnet.module(x), x)
    assert float(loss) < 1e-6
    other = Distillation(model, subnet, features=["block2"])
    assert float(other(subnet.module(x), x)) > 1e-2
    with pytest.raises(UsageError, match="the student's features have shape"):
        Distillation(copy.deepcopy(teacher), subnet.module, features=["block2"])(subnet.module(x), x)


def test_gradients_reach_the_student_and_not_the_teacher() -> None:
    model, subnet, (x,) = cut("digits")
    distillation = Distillation(model.train(), subnet, features=["block1"])
    statistics = {n: b.clone() for n, b in model.named_buffers()}
    for weight in (0.0, 1.0):
        distillation.feature_weight = weight
        subnet.module.zero_grad()
        torch.autograd.backward(distillation(subnet.module(x), x))
        assert all(p.grad is not None and bool(p.grad.any()) for p in subnet.module.parameters() if p.ndim > 1)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers()), "the teacher ran in eval mode"


def test_outputs_of_transformers() -> None:
    model, subnet, (ids,) = cut("bert_classifier")
    distillation = Distillation(model, subnet, temperature=2.0)
    output = subnet.module(ids)
    assert not isinstance(output, Tensor)
    with torch.no_grad():
        expected = soft_targets(logits_of(output), logits_of(model(ids)), 2.0)
    torch.testing.assert_close(distillation(output, input_ids=ids).detach(), expected)


def test_the_logits_of_an_output() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert logits_of({"loss": a, "logits": b}) is b
    assert logits_of((torch.zeros(2, dtype=torch.long), b)) is b
    with pytest.raises(UsageError, match="holds 2 floating point tensors") as caught:
        logits_of((a, b))
    assert "logits=lambda" in caught.value.remedy
    with pytest.raises(UsageError, match="holds 0 floating"):
        logits_of(None)


def test_a_student_learns_from_its_teacher_without_labels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    x = torch.randn(256, 8)
    subnet = compress(model, x[:4], budget={"macs": "30%"})
    distillation = Distillation(model, subnet)
    optimizer = torch.optim.Adam(subnet.module.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = distillation(subnet.module(x), x)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():
        assert F.kl_div(subnet.module(x).log_softmax(1), model(x).softmax(1), reduction="batchmean") < 0.01


def test_bad_input() -> None:
    model, subnet, (x,) = cut("digits")
    bad: list[tuple[Any, str]] = [
        (lambda: Distillation(model, model), "shares its weights"),
        (lambda: Distillation(subnet.module, subnet), "shares its weights"),
        (lambda: Distillation(model, subnet, features="block1"), "features is one name"),
        (lambda: Distillation(model, copy.deepcopy(model), features=["blok1"]), "no module is called 'blok1'"),
        (lambda: Distillation(model, 3), "expected a model"),  # type: ignore[arg-type]
        (lambda: Distillation(model, subnet, temperature=0.0)(subnet.module(x), x), "temperature is 0"),
        (lambda: soft_targets(torch.zeros(2, 3), torch.zeros(2, 4)), "logits have shape"),
    ]
    for call, message in bad:
        with pytest.raises(UsageError, match=message):
            call()
    with pytest.raises(UsageError, match="gave no single tensor") as caught:
        Distillation(model, subnet, features=["block1"])(torch.zeros(4, 10), x)
    assert "student" in str(caught.value)
    assert isinstance(subnet.config, Config)
