"""`Subnet`: the module, its proof, and the ways out of coppice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from coppice.backends.module.graph_model import graph_model
from coppice.backends.module.user_class import Repairs, apply, with_tensors
from coppice.core.config import Config
from coppice.core.errors import UnsupportedError, UsageError
from coppice.core.extraction import Extraction, low_name, sliced
from coppice.core.files import folder
from coppice.core.graph import Graph, describe
from coppice.core.higher import HigherOrder
from coppice.core.space import Space
from coppice.core.specs import spec_from_json, spec_to_json
from coppice.core.tensors import check_fits, named_tensors
from coppice.core.text import from_text, to_text

FORMAT = 1
WEIGHTS, GRAPH, RECEIPT, ONNX = "weights.safetensors", "graph.json", "receipt.json", "model.onnx"
MAX_JSON = 256 << 20


class GraphFile(BaseModel):
    """``graph.json``: the text form by lines, other names of shared tensors, how inputs and outputs nest.

    ``parameters`` says of each tensor that is a parameter whether it is trained; ``repairs`` how a model of the user's
    class takes these tensors, where one can.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    aliases: dict[str, str]
    parameters: dict[str, bool]
    inputs: Any
    outputs: Any
    repairs: dict[str, Any] | None
    graph: list[str]


@dataclass(frozen=True, eq=False)
class Origin:
    """What a subnet that was extracted, not loaded, remembers of the full model.

    ``masked`` are the full model's tensors with the slices of removed units zero, ``reference`` the graph that the
    subnet must equal on them. ``repairs`` turn a model of the user's class with the small tensors into the subnet's
    module; None where the graph took its place.
    """

    space: Space
    config: Config
    masked: Mapping[str, torch.Tensor]
    reference: Graph
    extraction: Extraction
    repairs: Repairs | None


class Subnet:
    """One extracted model.

    ``module`` is a standard ``nn.Module`` in eval mode: the user's own class where it runs at the new sizes, else an
    ``fx.GraphModule`` (``receipt["module"]`` says which, and why). ``graph`` is the small graph, ``receipt`` the proof.
    """

    def __init__(
        self,
        graph: Graph,
        module: nn.Module,
        receipt: dict[str, Any],
        origin: Origin | None = None,
        repairs: Repairs | None = None,
    ) -> None:
        self.graph, self.module, self.receipt, self.origin = graph, module, receipt, origin
        self.repairs = repairs if origin is None else origin.repairs

    @property
    def space(self) -> Space | None:
        """The space it was extracted from; None for a loaded subnet."""
        return None if self.origin is None else self.origin.space

    @property
    def config(self) -> Config | None:
        """What it keeps of that space; None for a loaded subnet (see ``receipt["config"]``)."""
        return None if self.origin is None else self.origin.config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def reference(self) -> nn.Module:
        """The full model with every removed unit's slices set to zero: what the subnet must equal.

        It follows the module: after fine-tuning, what stayed has its present weights. A copy of the user's own
        module where there is one. `UnsupportedError` for a subnet loaded from disk, which lacks the full model.
        """
        origin = self.extracted("reference")
        masked = self.masked_tensors()
        model = origin.space.graph.model
        if model is not None and self.receipt["module"]["reference"] == "user":
            return with_tensors(model, masked, origin.reference.aliases)
        return graph_model(origin.reference, {name: _detached(tensor) for name, tensor in masked.items()})

    def extracted(self, what: str) -> Origin:
        """The origin; `UnsupportedError` at ``what`` where the subnet was loaded and has none."""
        if self.origin is None:
            raise UnsupportedError(
                "a loaded subnet does not carry the full model",
                place=what,
                remedy="extract it again from the original model and receipt['config']",
            )
        return self.origin

    def masked_tensors(self, *, exact: bool = False) -> dict[str, torch.Tensor]:
        """The tensors of `reference`: the module's own where they stayed, zero where the unit that left was made.

        Slices that only read a removed unit keep the full model's values: they meet nothing but zeros, or constants
        that a bias of the subnet took over. Such a bias is given without them, in fp64 where ``exact``.
        """
        origin = self.extracted("masked_tensors")
        now, result = self.tensors(), dict(origin.masked)
        with torch.no_grad():
            for name, masks in origin.space.keep_masks(origin.config).items():
                if name in now and not now[name].is_meta:
                    full = _detached(result[name])
                    values = now[name].detach().to(full.device)
                    if name in origin.extraction.folded:
                        result[name] = _unfolded(origin, name, values, now.get(low_name(name)), exact)
                    else:
                        _scatter(full, masks, values)
                        result[name] = full
        return result

    def slice(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies of ``tensors``, named and shaped like the full model's, cut to the subnet's shapes.

        For anything that goes with the weights: an average of them, moments, gradients, masks. Any selection of the
        full model's parameters and buffers will do, under any of their names; those of erased segments are left out,
        and what the cut does not know (a counter of batches) is copied whole. Values are taken as they are: a bias that
        took over constants of removed units (``receipt["folded"]``) is cut without them, so weights to run with come
        from ``extract(..., weights=...)``.

        Raises `UsageError` for an unknown name or another shape, `UnsupportedError` for a loaded subnet.
        """
        origin = self.extracted("slice")
        graph = origin.space.graph
        check_fits(
            graph, tensors, "the full model", "slice", "pass tensors shaped like the full model's; they are cut here"
        )
        result = {}
        for name, tensor in tensors.items():
            if name not in origin.extraction.erased:
                result[name] = sliced(tensor, origin.extraction.kept.get(graph.canonical(name), ()))
        return result

    # ---- out -----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the subnet folder: ``weights.safetensors``, ``graph.json``, ``receipt.json``; whole or not at all.

        The folder loads with `coppice.load` and needs no class of the user's. An older folder at ``path`` is replaced.
        """
        path = Path(path)
        if self.graph.is_meta:
            raise UnsupportedError("a subnet on meta tensors has no weights to save", place=str(path))
        inner = next((n for n in self.graph.nodes if isinstance(n.target, HigherOrder)), None)
        if inner is not None:
            raise UnsupportedError(
                f"`{inner.target}` runs graphs of its own, which {GRAPH} cannot hold",
                place=describe(inner),
                remedy="keep subnet.module in your own code, or write that part with tensor operations",
            )
        tensors = self.tensors()
        text = json.dumps(
            GraphFile(
                format=FORMAT,
                aliases=self.graph.aliases,
                parameters={n: t.requires_grad for n, t in sorted(tensors.items()) if isinstance(t, nn.Parameter)},
                inputs=spec_to_json(self.graph.in_spec),
                outputs=spec_to_json(self.graph.out_spec),
                repairs=None if self.repairs is None else asdict(self.repairs),
                graph=to_text(self.graph).splitlines(),
            ).model_dump(),
            indent=1,
        )
        if path.is_dir() and any(path.iterdir()) and not (path / RECEIPT).is_file():
            raise UsageError(
                "the folder holds something that is not a subnet",
                place=str(path),
                remedy="give a new folder; only an empty folder or an older subnet is replaced",
            )
        with folder(path) as inside:
            save_file({n: t.detach().contiguous().clone() for n, t in tensors.items()}, str(inside / WEIGHTS))
            (inside / GRAPH).write_text(text, encoding="utf-8")
            self.receipt["weights_sha256"] = hashlib.sha256((inside / WEIGHTS).read_bytes()).hexdigest()
            self.receipt["graph_sha256"] = hashlib.sha256(text.encode()).hexdigest()
            (inside / RECEIPT).write_text(json.dumps(self.receipt, indent=2), encoding="utf-8")
        return path

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of ``module`` now (it may have been trained further), by canonical name."""
        now = {**dict(self.module.named_parameters(remove_duplicate=False)), **dict(self.module.named_buffers())}
        return {name: now.get(name, tensor) for name, tensor in self.graph.tensors.items()}

    def export_onnx(self, path: str | Path, *, check: bool = True) -> Path:
        """Write a standard ONNX model; with ``check``, compare it with the module in ONNX Runtime (if installed).

        Raises `UnsupportedError` where an op has no ONNX form, `EquivalenceError` where the runtime disagrees.
        """
        from coppice.backends.onnx.export import export

        return export(self.graph, self.tensors(), Path(path), self.receipt, check=check)


def _unfolded(origin: Origin, name: str, values: torch.Tensor, low: torch.Tensor | None, exact: bool) -> torch.Tensor:
    """The full bias ``name`` whose cut and folded form is ``values``: the masked one, unless it was trained since."""
    masked, offset = origin.masked[name].detach(), origin.extraction.folded[name].to(values.device)
    kept = origin.extraction.kept.get(name, ())
    if torch.equal(sliced((masked.double() + offset).to(values.dtype), kept), values):
        return _detached(origin.masked[name])
    full = masked.to(torch.float64, copy=True)
    _scatter(full, kept, values.double() if low is None else values.double() + low.double())
    full -= offset
    return full if exact else nn.Parameter(full.to(masked.dtype), origin.masked[name].requires_grad)


def _scatter(full: torch.Tensor, masks: Sequence[npt.NDArray[np.bool_] | None], values: torch.Tensor) -> None:
    """Write ``values`` into ``full`` at the positions that ``masks`` keep, axis by axis."""
    cut = [k for k, mask in enumerate(masks) if mask is not None and not mask.all()]
    if not cut:
        full.data.copy_(values)
        return
    mask = masks[cut[0]]
    assert mask is not None
    where = torch.from_numpy(np.flatnonzero(mask)).to(full.device)
    part = full.data.index_select(cut[0], where)
    _scatter(part, [m if k != cut[0] else None for k, m in enumerate(masks)], values)
    full.data.index_copy_(cut[0], where, part)


def _detached(tensor: torch.Tensor) -> torch.Tensor:
    data = tensor.detach().clone()
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


# ---- in ------------------------------------------------------------------------------------------------------------


def load(path: str | Path, model: nn.Module | None = None) -> Subnet:
    """Load a subnet folder. Nothing in it is executed or unpickled; sizes and hashes are checked first.

    The module is an ``fx.GraphModule``. Given ``model``, a model of the class that the subnet was cut from (of the full
    size, whatever its weights; it is copied), the module is of that class, with all its methods.

    Raises `UsageError` for a folder that is missing, incomplete, altered or of another format.
    """
    path = Path(path)
    for name in (WEIGHTS, GRAPH, RECEIPT):
        if not (path / name).is_file():
            raise UsageError(f"{name} is missing", place=str(path), remedy="give a folder that Subnet.save wrote")
    receipt, data = _json(path / RECEIPT), _json(path / GRAPH)
    stored = _stored(data, path / GRAPH)
    digests = (
        (GRAPH, "graph_sha256", hashlib.sha256((path / GRAPH).read_bytes()).hexdigest()),
        (WEIGHTS, "weights_sha256", hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()),
    )
    for name, key, found in digests:
        if receipt.get(key) != found:
            raise UsageError(
                "its hash is not the one in the receipt",
                place=str(path / name),
                remedy="the file was changed or damaged after it was saved; save the subnet again",
            )
    try:
        with safe_open(str(path / WEIGHTS), framework="pt") as file:
            tensors = {name: _typed(file.get_tensor(name), stored.parameters.get(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"not a safetensors file: {error}", place=str(path / WEIGHTS)) from None
    graph = from_text(
        "\n".join(stored.graph) + "\n",
        tensors,
        in_spec=spec_from_json(stored.inputs),
        out_spec=spec_from_json(stored.outputs),
        aliases=stored.aliases,
    )
    repairs = _repairs(stored, path / GRAPH)
    module = graph_model(graph) if model is None else _as_class(model, graph, repairs, receipt, path)
    return Subnet(graph, module, receipt, repairs=repairs)


def _repairs(stored: GraphFile, path: Path) -> Repairs | None:
    try:
        return None if stored.repairs is None else TypeAdapter(Repairs).validate_python(stored.repairs)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("repairs", *first["loc"])))
        raise UsageError(f"{where}: {first['msg']}", place=str(path), remedy="save the subnet again") from None


def _as_class(
    model: nn.Module, graph: Graph, repairs: Repairs | None, receipt: dict[str, Any], path: Path
) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}", place="load", remedy="pass an instance of the class")
    rewritten = receipt.get("module", {}).get("rewritten", [])
    if repairs is None or rewritten:
        what = f"the forwards of {', '.join(rewritten)} are the graph's" if rewritten else "its module is the graph"
        raise UnsupportedError(
            f"the subnet cannot be put into {type(model).__name__}: {what}",
            place=str(path),
            remedy="load it without model",
        )
    lows = {low_name(bias) for bias in repairs.lows}
    missing = sorted(set(graph.tensors) - set(named_tensors(model)) - lows)
    if missing:
        raise UsageError(
            f"{type(model).__name__} has no {missing[0]}",
            place=str(path),
            remedy="pass a model of the class it was cut from",
        )
    module = with_tensors(model, graph.tensors, graph.aliases)
    apply(module, repairs, graph.tensors)
    return module


def _typed(tensor: torch.Tensor, trained: bool | None) -> torch.Tensor:
    tensor = tensor.clone()  # to torch's own alignment: products of unaligned tensors may differ in their last bits
    if trained is None:
        return tensor
    return nn.Parameter(tensor, requires_grad=trained and tensor.is_floating_point())


def _stored(data: dict[str, Any], path: Path) -> GraphFile:
    if data.get("format") != FORMAT:
        raise UsageError(f"format {data.get('format')!r} is not {FORMAT}", place=str(path))
    try:
        return GraphFile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where}: {first['msg']}", place=str(path), remedy="save the subnet again") from None


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON:
        raise UsageError(f"the file is larger than {MAX_JSON >> 20} MiB", place=str(path))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}", place=str(path)) from None
    if not isinstance(data, dict):
        raise UsageError("expected a JSON object", place=str(path))
    return data
