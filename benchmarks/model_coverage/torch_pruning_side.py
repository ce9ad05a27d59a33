"""The same model through Torch-Pruning's dependency graph: half of every group by magnitude, then the same check.

What it is given, so that the comparison is about its analysis and not about its defaults: the layers that make the
model's output are ignored (found by coppice's graph); every attention whose projections and head count can be found is
named in ``num_heads``, and the model is tried without that too, the better result counting; after pruning, head sizes
kept as attributes are set to the new ones, as its own examples do; outputs are flattened for it.

*Sound*: the pruned model equals, in fp64, the original with the pruned output slices of every layer in its groups set
to zero (weights, biases, norm scales and shifts, running means, the parameters it found outside layers). *Sound up to
norms*: the same, with the layer norms of the original averaging over the kept channels alone, as those of the pruned
model do: a definition no masked model of a user's meets, given here because it separates wrong wiring from that choice.
"""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn import functional as F

import coppice
from coppice.core.tensors import named_tensors
from coppice.passes.analyze.labels import OUTPUT
from model_coverage import peers, wide
from model_coverage.entry import Args, Entry
from model_coverage.measure import BATCH, failure, quiet_cache

TOLERANCE = 1e-6
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "dim_head", "d_head", "head_size")
ALL_SIZES = ("all_head_size", "inner_dim", "attn_dim", "embed_dim", "hidden_size", "dim", "split_size", "d_attn")
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def measure(entry: Entry, limit: float) -> dict[str, Any]:
    """The row of ``entry``: stages built, pruned, runs, checked, and the two gaps; two attempts share ``limit`` s."""
    row: dict[str, Any] = {"key": entry.key, "domain": entry.domain, "stage": "build", "seconds": {}}
    try:
        _stages(entry, row, limit)
    except Exception as error:  # noqa: BLE001 (the table reports whatever happens)
        row["failure"] = failure(error)
    return row


def _stages(entry: Entry, row: dict[str, Any], limit: float) -> None:
    model = entry.build()
    ignored = output_layers(entry, model)
    peers.use()
    attempts = [_attempt(entry, copy.deepcopy(model), ignored, True, limit / 2)]
    if "did not end" not in attempts[0].get("failure", "") or attempts[0]["stage"] != "build":
        attempts.append(_attempt(entry, model, ignored, False, limit / 2))
    row |= min(attempts, key=lambda found: (-STAGES.index(found["stage"]), found.get("error", 0.0)))


STAGES = ("build", "built", "pruned", "runs", "checked")


def _attempt(entry: Entry, model: nn.Module, ignored: set[str], with_heads: bool, limit: float) -> dict[str, Any]:
    """One try, with the heads of attention named or not: either may be what makes a model go through."""
    found: dict[str, Any] = {"stage": "build", "seconds": {}, "heads": with_heads}

    def stop(*_: object) -> None:
        raise TimeoutError(f"did not end within {limit:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        _prune_and_check(entry, model, ignored, head_counts(model) if with_heads else {}, found)
    except Exception as error:  # noqa: BLE001
        found["failure"] = failure(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found


def _prune_and_check(
    entry: Entry, model: nn.Module, ignored: set[str], heads: dict[nn.Module, int], row: dict[str, Any]
) -> None:
    import torch_pruning as tp

    original = copy.deepcopy(model)
    names = {id(m): n for n, m in model.named_modules()}
    given = entry.inputs(BATCH)
    before = sum(p.numel() for p in model.parameters())
    with quiet_cache(model):
        started = time.perf_counter()
        pruner = tp.pruner.BasePruner(
            model,
            given if isinstance(given, dict) else tuple(given),
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[m for m in model.modules() if names[id(m)] in ignored],
            num_heads=dict(heads),
            in_channel_groups={},
            out_channel_groups={},
            forward_fn=call,
            output_transform=lambda y: [t for t in pytree.tree_leaves(y) if isinstance(t, Tensor) and t.requires_grad],
        )
        row["seconds"]["analyse"] = round(time.perf_counter() - started, 3)
        row["stage"] = "built"
        gone = prune(pruner, original, names)
        repair(model, heads)
        row["seconds"]["prune"] = round(time.perf_counter() - started - row["seconds"]["analyse"], 3)
        row |= {"stage": "pruned", "kept": {"params": sum(p.numel() for p in model.parameters()) / before}}
        if not gone:
            raise ValueError("nothing was pruned: no group outside the ignored layers")
        model.eval()
        with torch.no_grad():
            call(model, given)
        row["stage"] = "runs"
    masked = mask(original, gone)
    with quiet_cache(masked), quiet_cache(model):
        row["error"] = wide.worst_gap(masked, model, entry.inputs, [BATCH])
        row["error_up_to_norms"] = row["error"]
        if row["error"] > TOLERANCE:
            renormalise(masked, gone)
            row["error_up_to_norms"] = wide.worst_gap(masked, model, entry.inputs, [BATCH])
    row["stage"] = "checked"


def call(model: nn.Module, inputs: Args) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def output_layers(entry: Entry, model: nn.Module) -> set[str]:
    """The modules whose output axis is the model's output."""
    space = coppice.build_space(coppice.trace(model, entry.inputs(BATCH)))
    axes = (f.axis for f in space.frozen if f.reason == OUTPUT)
    names = {
        axis.rpartition("[")[0].rpartition(".")[0]
        for axis in axes
        if axis.endswith(("[out]", "[channel]", "[feature]"))
    }
    return names - {""}


def head_counts(model: nn.Module) -> dict[nn.Module, int]:
    """Head counts by projection layer, for modules that hold both under a usual name."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        heads = next((v for n in HEADS if type(v := getattr(module, n, None)) is int and v > 0), None)
        if heads is None or isinstance(module, nn.MultiheadAttention):
            continue
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and name.split("_")[0] in (
                "q",
                "k",
                "v",
                "qkv",
                "query",
                "key",
                "value",
                "kv",
            ):
                own = getattr(module, "num_key_value_heads", heads) if name[0] in "kv" else heads
                if child.out_features % own == 0:
                    found[child] = int(own)
    return found


def repair(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    """Head sizes that modules keep as numbers, from the new widths of their projections."""
    for module in model.modules():
        queries = [c for n, c in module.named_children() if c in heads and n[0] == "q"]
        if not queries or not isinstance(queries[0], nn.Linear):
            continue
        name = next(n for n, c in module.named_children() if c is queries[0])
        whole = queries[0].out_features // (3 if "kv" in name else 1)
        for attribute in (*HEAD_SIZES, *ALL_SIZES):
            if type(getattr(module, attribute, None)) is int:
                setattr(module, attribute, whole // heads[queries[0]] if attribute in HEAD_SIZES else whole)


Gone = list[tuple[str, int, "np.ndarray[Any, Any]"]]
"""(name of a tensor of the original, axis, positions that were pruned)."""


def prune(pruner: Any, original: nn.Module, names: dict[int, str]) -> Gone:
    """Prune group by group; what goes is told in positions of the original."""
    modules, left, gone = dict(original.named_modules()), {}, []  # type: ignore[var-annotated]
    dims = {
        pruner.DG._param_to_name[p]: dim for p, dim in pruner.DG.unwrapped_parameters if p in pruner.DG._param_to_name
    }
    tensors = named_tensors(original)
    for group in pruner.step(interactive=True):
        for dep, found in group.items:
            target = dep.target.module
            positions = [h.idx if hasattr(h, "idx") else int(h) for h in found]
            if isinstance(target, nn.Parameter):
                name = pruner.DG._param_to_name[target]
                slots = [(name, dims.get(name, -1) % target.dim(), 1)]
            elif id(target) not in names:
                continue
            else:
                name = names[id(target)]
                made = pruner.DG.is_out_channel_pruning_fn(dep.handler)
                slots = list(_slots(name, modules[name], made))
            if not slots:
                continue
            size = tensors[slots[0][0]].shape[slots[0][1]] // slots[0][2]
            now = left.setdefault(name, np.arange(size))
            gone += [
                (tensor, axis, np.concatenate([now[positions] + k * size for k in range(repeats)]))
                for tensor, axis, repeats in slots
                if tensor in tensors
            ]
            left[name] = np.delete(now, positions)
        group.prune()
    return gone


def _slots(name: str, module: nn.Module, made: bool) -> Iterator[tuple[str, int, int]]:
    """(tensor, axis, how often the positions repeat along it) of what a layer makes."""
    at = f"{name}." if name else ""
    if isinstance(module, NORMS):
        yield from (
            (f"{at}{t}", 0, 1) for t in ("weight", "bias", "running_mean") if getattr(module, t, None) is not None
        )
    elif isinstance(module, nn.MultiheadAttention):
        yield from ((f"{at}out_proj.weight", 0, 1), (f"{at}out_proj.bias", 0, 1))
        yield from ((f"{at}in_proj_weight", 0, 3), (f"{at}in_proj_bias", 0, 3))
    elif not made:
        return
    elif isinstance(module, nn.Embedding):
        yield f"{at}weight", 1, 1
    elif isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        yield from ((f"{at}{n}", 0, gates) for n, _ in module.named_parameters() if "hr" not in n)
    elif isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups == 1
        yield f"{at}weight", 1 if transposed else 0, 1
        if module.bias is not None:
            yield f"{at}bias", 0, 1


@torch.no_grad()
def mask(original: nn.Module, gone: Gone) -> nn.Module:
    masked = copy.deepcopy(original)
    tensors = named_tensors(masked)
    for name, axis, positions in gone:
        tensors[name].data.index_fill_(axis, torch.from_numpy(positions).long(), 0.0)
    return masked


def renormalise(masked: nn.Module, gone: Gone) -> None:
    """Let every layer norm that was pruned average over its kept channels."""
    removed: dict[str, list[Any]] = {}
    for name, _, positions in gone:
        removed.setdefault(name.rpartition(".")[0], []).append(positions)
    for name, module in masked.named_modules():
        if name in removed and type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
            out = np.unique(np.concatenate(removed[name]))
            keep = torch.from_numpy(np.setdiff1d(np.arange(module.normalized_shape[-1]), out))
            module.forward = _Kept(module, keep)  # type: ignore[method-assign, assignment, arg-type]


class _Kept:
    def __init__(self, norm: nn.LayerNorm, keep: Tensor) -> None:
        self.norm, self.keep = norm, keep

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept(copy.deepcopy(self.norm, memo), self.keep)

    def __call__(self, x: Tensor) -> Tensor:
        narrow = x.index_select(-1, self.keep)
        weight = None if self.norm.weight is None else self.norm.weight[self.keep]
        if isinstance(self.norm, nn.LayerNorm):
            bias = None if self.norm.bias is None else self.norm.bias[self.keep]
            y = F.layer_norm(narrow, narrow.shape[-1:], weight, bias, self.norm.eps)
        else:
            y = F.rms_norm(narrow, narrow.shape[-1:], weight, self.norm.eps)
        return torch.zeros_like(x).index_copy(-1, self.keep, y)
