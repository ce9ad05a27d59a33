"""One model through coppice: trace, analyse, halve every family, extract, and check the result by other means."""

from __future__ import annotations

import copy
import re
import time
from collections import Counter
from typing import Any

import torch
from torch import nn

import coppice
from coppice.core.space import Space
from coppice.core.tensors import named_tensors
from model_coverage import wide
from model_coverage.entry import Entry

TOLERANCE = 1e-9
BATCH = 2


def measure(entry: Entry) -> dict[str, Any]:
    """The row of ``entry``. ``stage`` is the last one reached; ``failure`` says why it is not ``checked``.

    ``error`` is the receipt's, ``other_error`` that of the check of this file: the user's model with the masked
    slices set to zero against the subnet's module, both in fp64, at two batch sizes where the batch is dynamic.
    """
    row: dict[str, Any] = {"key": entry.key, "domain": entry.domain, "stage": "build", "seconds": {}}
    try:
        _stages(entry, row)
    except Exception as error:  # noqa: BLE001 (the table reports whatever happens)
        row["failure"] = failure(error)
    return row


def failure(error: Exception) -> str:
    """The first line of an error, without the folders of this machine."""
    first = (str(error).strip().splitlines() or [""])[0]
    return re.sub(r"/\S*/(?=[\w.]+)", "", f"{type(error).__name__}: {first}")[:400]


def _stages(entry: Entry, row: dict[str, Any]) -> None:
    model = entry.build()
    row["params"] = sum(p.numel() for p in model.parameters())
    clock = _Clock(row["seconds"])
    graph = coppice.trace(model, entry.inputs(BATCH))
    clock("trace")
    row |= {"stage": "traced", "nodes": len(graph.nodes), "notes": list(graph.notes)}
    space = coppice.build_space(graph)
    clock("analyse")
    row |= {
        "stage": "analysed",
        "families": len(space.families),
        "prunable": prunable(space),
        "reasons": reasons(space),
    }
    config = space.uniform(0.5)
    subnet = coppice.extract(space, config)
    clock("extract")
    receipt = subnet.receipt
    row |= {
        "stage": "extracted",
        "class_kept": receipt["module"]["kind"] == "user",
        "why": receipt["module"]["why"],
        "reference": receipt["module"]["reference"],
        "error": receipt["equivalence"]["error"],
        "kept": {m: c["after"] / max(1.0, c["before"]) for m, c in receipt["costs"].items()},
        "batch_dynamic": graph.batch_dynamic,
    }
    batches = [BATCH, BATCH + 1] if graph.batch_dynamic else [BATCH]
    masked = mask(model, space, config)
    with quiet_cache(model), quiet_cache(masked), quiet_cache(subnet.module):
        row["other_error"] = wide.worst_gap(masked, subnet.module, entry.inputs, batches)
        row["moved"] = wide.worst_gap(model, masked, entry.inputs, [BATCH])
    row["stage"] = "checked"


class quiet_cache:
    """The key-value cache of a transformers model, which coppice leaves out of the graph, switched off."""

    def __init__(self, model: nn.Module) -> None:
        config = getattr(model, "config", None)
        self.config = config if getattr(config, "use_cache", None) is True else None

    def __enter__(self) -> None:
        if self.config is not None:
            self.config.use_cache = False

    def __exit__(self, *_: object) -> None:
        if self.config is not None:
            self.config.use_cache = True


@torch.no_grad()
def mask(model: nn.Module, space: Space, config: coppice.Config) -> nn.Module:
    """A copy of the user's model with the slices of every removed unit set to zero."""
    result = copy.deepcopy(model)
    tensors = named_tensors(result)
    for name, axes in space.zero_masks(config).items():
        for k, zero in enumerate(axes):
            if zero is not None:
                tensors[name].data.index_fill_(k, torch.from_numpy(zero).nonzero().flatten(), 0.0)
    return result


def _least(space: Space) -> coppice.Config:
    return space.with_widths({f.name: f.widths[0] for f in space.families})


def prunable(space: Space) -> float:
    """1 - parameters of the smallest subnet / parameters."""
    least, full = (float(space.cost(c)["params"][0]) for c in (_least(space), space.full()))
    return 1 - least / max(1.0, full)


def reasons(space: Space, most: int = 6) -> list[list[Any]]:
    """Why axes stay: the commonest reasons, [share of all parameters, text], node names left out."""
    weight: Counter[str] = Counter()
    total = sum(t.numel() for t in space.graph.parameters().values())
    for entry in space.frozen:
        name = entry.axis.rpartition("[")[0]
        tensor = space.graph.tensors.get(name)
        if tensor is not None:
            text = re.sub(r"`([a-z_0-9]*?)(_\d+)?`", r"`\1`", entry.reason)
            weight[text] += round(tensor.numel() * entry.count / max(1, entry.size))
    return [[round(n / max(1, total), 4), text] for text, n in weight.most_common(most)]


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = round(now - self.last, 3), now
