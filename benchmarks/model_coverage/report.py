"""Rows to text: a line while running, a summary at the end, docs/coverage.md."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from model_coverage.measure import TOLERANCE
from model_coverage.registry import SOURCES

Row = dict[str, Any]
PEER_TOLERANCE = 1e-6

KNOWN = {
    "transformers/encodec": "its own code branches on the value of a tensor (`if length <= max_pad`)",
    "transformers/nystromformer": "traced, its own code adds an attention mask of the wrong shape to its landmarks",
}
"""Why a model does not get through, where its own message does not say it."""


def analysed(row: Row) -> bool:
    return row["stage"] in ("analysed", "extracted", "checked")


def through(row: Row) -> bool:
    return row["stage"] in ("extracted", "checked") and "error" in row


def sound(row: Row) -> bool:
    return row["stage"] == "checked" and bool(max(row["error"], row["other_error"]) <= TOLERANCE)


def peer_sound(row: Row, key: str = "error") -> bool:
    return row["stage"] == "checked" and bool(row[key] <= PEER_TOLERANCE)


def line(row: Row) -> str:
    worst = max(row.get("error", 0.0), row.get("other_error", 0.0))
    return f"{row['tool']} {row['key']}: {row['stage']}, {row.get('failure') or f'error {worst:.2g}'}"


def show(rows: list[Row]) -> None:
    """The summary on the terminal."""
    table = Table(*SUMMARY)
    for cells in _summary([r for r in rows if r["tool"] == "coppice"]):
        table.add_row(*cells)
    console = Console()
    console.print(table)
    for row in rows:
        if row["tool"] == "coppice" and not sound(row):
            console.print(line(row))


SUMMARY = ("models", "number", "analysed", "extracted", "sound", "own class kept", "prunable, median", "worst error")


def _summary(rows: list[Row]) -> Iterable[tuple[str, ...]]:
    for name, part in [*((s, [r for r in rows if r["key"].startswith(f"{s}/")]) for s in SOURCES), ("all", rows)]:
        if part:
            checked = [r for r in part if r["stage"] == "checked"]
            yield (
                name, str(len(part)), _share(analysed, part), _share(through, part), _share(sound, checked),
                _share(lambda r: r.get("class_kept", False), part),
                f"{statistics.median([r['prunable'] for r in part if 'prunable' in r] or [0.0]):.1%}",
                f"{max([max(r['error'], r['other_error']) for r in checked] or [0.0]):.1e}",
            )  # fmt: skip


def _share(test: Callable[[Row], bool], rows: list[Row]) -> str:
    hits = sum(map(test, rows))
    return f"{hits} ({hits / max(1, len(rows)):.1%})"


# ---- docs/coverage.md ----------------------------------------------------------------------------------------------

HEAD = """# Coverage

What coppice makes of {count} models: their real classes in small configurations, with random weights. `make coverage`
made this page in one run: every model is traced, analysed, cut to half of every family (`space.uniform(0.5)`) and
extracted, each in a process of its own with {limit:.0f} s. Versions: {versions}.

- *analysed*: traced and every parameter axis labelled. *extracted*: a smaller module came out, proven by `extract`
  in fp64 against the masked model (tolerance 1e-9).
- *sound*: a second check, which shares no code with the first: the user's own model with the slices of `zero_masks`
  set to zero, and the subnet's module, both in fp64 with every cast inside them widened, on two batch sizes where the
  batch is dynamic. *error* is the larger of the two, relative to the largest output.
- *families*: groups of interchangeable units. *prunable*: the fraction of the parameters that the smallest subnet
  lacks. *half*: the fraction of the parameters that is left with half of every family.
- *class*: whether the subnet is the model's own class (else an `fx.GraphModule`).
"""


def markdown(rows: list[Row], versions: dict[str, str], limits: dict[str, float]) -> str:
    """The whole page."""
    own = [r for r in rows if r["tool"] == "coppice"]
    peers = {r["key"]: r for r in rows if r["tool"] != "coppice"}
    stamp = ", ".join(f"{name} {version}" for name, version in versions.items() if version != "absent")
    parts = [HEAD.format(count=len(own), limit=limits["coppice"], versions=stamp)]
    parts.append("## By source\n\n" + _table(SUMMARY, _summary(own)))
    parts.append("## By domain\n\n" + _table(SUMMARY, _domains(own)))
    if peers:
        parts.append(_side_by_side(own, peers, versions["torch_pruning"], limits["torch-pruning"]))
    parts.append("## What does not get through\n\n" + _failures(own))
    parts.append("## What stays, and why\n\n" + _reasons(own))
    parts.append("## Where the class is not kept\n\n" + _classes(own))
    for source in SOURCES:
        part = [r for r in own if r["key"].startswith(f"{source}/")]
        if part:
            parts.append(f"## {source}\n\n" + _models(part, peers))
    return "\n".join(parts)


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    columns = list(head)
    text = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*text, *(f"| {' | '.join(cells)} |" for cells in lines)]) + "\n"


def _domains(rows: list[Row]) -> Iterable[tuple[str, ...]]:
    for domain in sorted({r["domain"] for r in rows if "domain" in r}):
        part = [r for r in rows if r.get("domain") == domain]
        yield (domain, *list(_summary(part))[-1][1:])


SIDES = """## Side by side with Torch-Pruning {version}

The same models, inputs and processes, in the same run, with {limit:.0f} s a model{part}.
Torch-Pruning prunes half of every group by magnitude, the layers that make the output left out, with head counts handed
to it and sizes repaired after it, and without where that goes further; outputs are flattened for it. *Sound* for it: in
fp64, to 1e-6, the pruned model equals the original with the pruned output slices of all layers in its groups set to
zero. *Up to norms* also accepts that a layer norm then averages over fewer values, which no masked model does: what is
left are groups that are wired wrongly.

"""


def _side_by_side(own: list[Row], peers: dict[str, Row], version: str, limit: float) -> str:
    both = [r for r in own if r["key"] in peers]
    theirs = [peers[r["key"]] for r in both]
    head = (
        "tool",
        "models",
        "analysed",
        "pruned and runs",
        "sound",
        "sound up to norms",
        "analysis, median s",
        "p90 s",
    )
    ours = [sum(r["seconds"][k] for k in ("trace", "analyse")) for r in both if "analyse" in r.get("seconds", {})]
    built = [r["seconds"]["analyse"] for r in theirs if "analyse" in r.get("seconds", {})]
    lines = [
        (
            "coppice", str(len(both)), _share(analysed, both), _share(through, both), _share(sound, both),
            _share(sound, both), f"{statistics.median(ours):.2f}", f"{_p90(ours):.2f}",
        ),
        (
            "Torch-Pruning", str(len(theirs)), _share(lambda r: r["stage"] != "build", theirs),
            _share(lambda r: r["stage"] in ("runs", "checked"), theirs), _share(peer_sound, theirs),
            _share(lambda r: peer_sound(r, "error_up_to_norms"), theirs), f"{statistics.median(built or [0.0]):.2f}",
            f"{_p90(built or [0.0]):.2f}",
        ),
    ]  # fmt: skip
    part = "" if len(both) == len(own) else f"; the run was stopped after the first {len(both)} of {len(own)} models"
    return SIDES.format(version=version, limit=limit, part=part) + _table(head, lines) + (
        "\nShares are of all models. coppice's seconds are `torch.export` and its analysis together, Torch-Pruning's "
        "its dependency graph, for which it runs the model once.\n"
    )  # fmt: skip


def _p90(values: list[float]) -> float:
    return sorted(values)[int(0.9 * (len(values) - 1))]


def _failures(rows: list[Row]) -> str:
    bad = [r for r in rows if not sound(r)]
    if not bad:
        return "Nothing: every model is extracted and sound.\n"
    lines = ((r["key"], r["stage"], KNOWN.get(r["key"]) or _cell(r.get("failure") or f"error {line(r)}")) for r in bad)
    return _table(("model", "last stage", "why"), lines)


def _reasons(rows: list[Row]) -> str:
    """Reasons by the number of models in which they hold at least a hundredth of the parameters."""
    models: Counter[str] = Counter()
    for row in rows:
        models.update({text for share, text in row.get("reasons", []) if share >= 0.01})
    intro = (
        "Reasons that hold an axis of at least a hundredth of a model's parameters, by the number of such models.\n\n"
    )
    return intro + _table(("reason", "models"), ((_cell(text), str(n)) for text, n in models.most_common(25)))


def _classes(rows: list[Row]) -> str:
    lost = [r for r in rows if r["stage"] == "checked" and not r["class_kept"]]
    if not lost:
        return "Nowhere.\n"
    lines = ((r["key"], _cell(r["why"].partition(" ")[2])) for r in lost)
    return _table(("model", "its own class"), lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:240]


def _models(rows: list[Row], peers: dict[str, Row]) -> str:
    head = ["model", "domain", "parameters", "families", "prunable", "half", "class", "trace s", "analyse s",
            "extract s", "error"]  # fmt: skip
    if peers:
        head.append("Torch-Pruning")
    return _table(head, ([*_model(r), *([_verdict(peers.get(r["key"]))] if peers else [])] for r in rows))


def _model(row: Row) -> list[str]:
    seconds = row.get("seconds", {})
    times = [f"{seconds[k]:.1f}" if k in seconds else "" for k in ("trace", "analyse", "extract")]
    name = [row["key"].partition("/")[2], row.get("domain", ""), _count(row.get("params", 0))]
    if "families" not in row:
        return [*name, "", "", "", "", *times, "not analysed"]
    found = [str(row["families"]), f"{row['prunable']:.1%}"]
    if row["stage"] != "checked":
        return [*name, *found, "", "", *times, "not " + ("extracted" if row["stage"] == "analysed" else "checked")]
    worst = max(row["error"], row["other_error"])
    return [*name, *found, f"{row['kept']['params']:.1%}", "kept" if row["class_kept"] else "", *times, f"{worst:.0e}"]


def _verdict(row: Row | None) -> str:
    if row is None or re.search("did not end|took more", row.get("failure", "")):
        return "" if row is None else "does not end"
    if row["stage"] != "checked":
        return STAGES.get(row["stage"], "not checked")
    gap = row["error_up_to_norms"]
    return "sound" if peer_sound(row) else "sound up to norms" if gap <= PEER_TOLERANCE else f"wrong by {gap:.0e}"


STAGES = {"build": "not analysed", "built": "fails while pruning", "pruned": "does not run"}


def _count(n: int) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n / 1e3:.0f} k"
