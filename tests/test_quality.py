"""A small sample of the quality benchmark: its rules hold, whatever the numbers are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from quality import arms, pairs, report, runner
from quality.arms import ARMS, FULL, Cell, Given, MissedBudgetError
from quality.digits import Digits
from quality.images import augment
from quality.journal import Journal
from quality.nets import resnet8, resnet8_weights
from quality.task import Recipe
from torch import nn


@dataclass(frozen=True)
class Short(Digits):
    """The digits protocol with hardly any training."""

    budgets: tuple[float, ...] = (0.3,)
    seeds: tuple[int, ...] = (0, 1)
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=12, dense=6, batch=50, rate=0.1))


TASK = Short()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "short.jsonl", "now")


def test_a_network_from_scratch_has_the_widths_of_dhspg(journal: Journal) -> None:
    first = runner.measure(TASK, Cell("dhspg", 0.3, 1), journal.path.parent, journal.stamp)
    again = runner.measure(TASK, Cell("scratch", 0.3, 1), journal.path.parent, journal.stamp, first["widths"])
    assert again["widths"] == first["widths"] and again["macs"] == first["macs"]
    assert 0.297 <= first["macs"] <= 0.3 and 0 < first["accuracy"] < 1 and first["cross_entropy"] > 0


def test_every_arm_takes_the_same_steps_and_meets_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def train(model: nn.Module, made: object, batches: object, steps: int, rate: float, mixed: bool) -> None:
        taken.append(steps)

    monkeypatch.setattr(arms, "train", train)
    dense = arms.dense_state(TASK, 0)
    assert taken == [6]
    for name in sorted(ARMS.keys() - arms.absent() - {"scratch"}):
        taken.clear()
        given = Given(TASK, Cell(name, 0.3, 0), dense)
        model = ARMS[name].run(given)
        assert sum(taken) + (6 if ARMS[name].needs == "dense" else 0) == 12, name
        assert name == FULL or 0.297 <= arms.check(model, given)["macs"] <= 0.3


def test_the_start_and_the_order_of_samples_depend_on_the_seed_alone() -> None:
    first, same, other = (TASK.start(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])
    (x, y), (u, v) = next(TASK.batches(3, "train")), next(TASK.batches(3, "train"))
    assert torch.equal(x, u) and torch.equal(y, v)
    assert not torch.equal(x, next(TASK.batches(3, "tune"))[0])


def test_a_run_beside_the_budget_is_an_error() -> None:
    given = Given(TASK, Cell("random", 0.3, 0))
    with pytest.raises(MissedBudgetError, match=r"100\.0000% of the MACs, asked for 30%"):
        arms.check(given.model(), given)


def test_a_stopped_run_goes_on(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = runner.cells(TASK, ["random", "full"], TASK.seeds, TASK.budgets)
    assert [cell.key for cell in wanted] == ["random/0.3/0", "full/1/0", "random/0.3/1", "full/1/1"]
    for cell in wanted:
        journal.add({"key": cell.key, "arm": cell.arm, "budget": cell.budget, "seed": cell.seed})
    with journal.path.open("a") as file:
        file.write('{"stamp": "now", "key": "half a li')
    again = Journal(journal.path, "now")
    assert set(again.rows) == {cell.key for cell in wanted}
    monkeypatch.setattr(runner, "measure", None)  # nothing is left to measure
    assert runner.run(TASK, wanted, again, jobs=1) == []
    again.add({"key": "one more"})
    assert Journal(journal.path, "now").rows.keys() == again.rows.keys()
    assert not Journal(journal.path, "later").rows, "rows of other code do not count"


def test_the_interval_covers_the_mean_and_pairs_remove_what_seeds_share() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 10, 20)
    found = pairs.compare(common, common - 1 + rng.normal(0, 0.1, 20))
    assert found.low < found.mean < found.high < 0 and found.significant
    assert (found.wins, found.ties, found.losses) == (20, 0, 0)
    even = pairs.compare(common, common)
    assert (even.mean, even.ties, even.significant) == (0, 20, False)
    covered = [pairs.compare(np.zeros(20), rng.normal(0.5, 1, 20), seed=k).low < 0.5 for k in range(40)]
    assert 33 <= sum(covered) <= 40


def test_the_page_keeps_the_sections_of_others(tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    report.put(page, "cifar", "one")
    report.put(page, "digits", "two")
    report.put(page, "cifar", "three\n")
    text = page.read_text()
    assert text.startswith("# Quality") and "one" not in text
    assert text.index("\nthree\n") < text.index("\ntwo\n")


def test_the_table_names_the_difference_to_our_best_arm() -> None:
    rows = [
        {"arm": arm, "budget": 0.3, "seed": seed, "accuracy": accuracy + 0.01 * seed, "cross_entropy": 1.0, "macs": 0.3}
        for arm, accuracy in (("dhspg", 0.9), ("random", 0.8), ("full", 0.95))
        for seed in TASK.seeds
    ]
    text = report.tables(TASK, json.loads(json.dumps(rows)))
    line = next(line for line in text.splitlines() if line.startswith("| random"))
    assert "| -10.00 | -10.00 .. -10.00 | 2 / 0 / 0 |" in line and "80.50 ± 0.50 %" in line


def test_images_are_shifted_and_flipped_whole() -> None:
    x = torch.zeros(512, 1, 8, 8, dtype=torch.uint8)
    x[:, 0, 4, 3] = 9
    y = augment(x, torch.Generator().manual_seed(0), reach=1)
    assert (y.sum((1, 2, 3)) == 9).all()
    assert {tuple(place) for place in y[:, 0].nonzero()[:, 1:].tolist()} == {
        (row, column) for row in (3, 4, 5) for column in (2, 3, 4, 5)
    }


def test_tensorflow_weights_fold_the_convolution_biases_into_the_norms() -> None:
    rng = np.random.default_rng(0)
    shapes = {"stem": (16, 3, 3, 3)}
    for stage, width in enumerate((16, 32, 64), start=1):
        before = max(16, width // 2)
        shapes |= {f"s{stage}c1": (width, before, 3, 3), f"s{stage}c2": (width, width, 3, 3)}
    file = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        file[f"{name}.bias"] = rng.normal(size=shape[0])
        file |= {f"{name}.bn.{part}": rng.uniform(1, 2, shape[0]) for part in ("gamma", "beta", "mean", "var")}
    for name, inputs, width in (("s2skip", 16, 32), ("s3skip", 32, 64)):
        file |= {f"{name}.weight": rng.normal(size=(width, inputs, 1, 1)), f"{name}.bias": rng.normal(size=width)}
    file |= {"fc.weight": rng.normal(size=(10, 64)), "fc.bias": rng.normal(size=10)}
    model = resnet8().double()
    model.load_state_dict(resnet8_weights(file))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    given = nn.functional.conv2d(
        x, torch.from_numpy(file["stem.weight"]), torch.from_numpy(file["stem.bias"]), padding=1
    )
    shape = (1, -1, 1, 1)
    gamma, beta, mean, var = (
        torch.from_numpy(file[f"stem.bn.{p}"]).view(shape) for p in ("gamma", "beta", "mean", "var")
    )
    expected = (gamma * (given - mean) / (var + 1e-3).sqrt() + beta).relu()
    assert torch.allclose(model.eval().stem(x), expected)
