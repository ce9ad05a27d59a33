"""Example inputs from ``1x3x32x32:float32`` and calibration batches from a file of arrays."""

from __future__ import annotations

import inspect
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coppice.core.errors import UsageError
from coppice.core.names import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")
LARGEST = 2**31
"""Elements of one example input."""
MAX_BYTES = 4 << 30
"""Of a calibration file, unpacked."""
TARGETS = "targets"


def parse_inputs(specs: Sequence[str], seed: int = 0) -> Any:
    """A tuple of tensors, or a dict of them where every spec has a name; None for no specs.

    ``1x3x32x32`` is normal noise in float32, ``1x12:int64`` zeros and ones.
    """
    if not specs:
        return None
    named: dict[str, torch.Tensor] = {}
    plain: list[torch.Tensor] = []
    for k, spec in enumerate(specs):
        name, tensor = _tensor(spec, seed + k)
        if name in named:
            raise UsageError("this name is given twice", place=f"--input {spec}", remedy="give each input once")
        if name:
            named[name] = tensor
        else:
            plain.append(tensor)
    if named and plain:
        raise UsageError(
            "some inputs have names and some have none", place="--input", remedy="name all of them, or none"
        )
    return named or tuple(plain)


def _tensor(spec: str, seed: int) -> tuple[str, torch.Tensor]:
    import torch

    place = f"--input {spec}"
    found = re.fullmatch(r"(?:(\w+)=)?(\d+(?:x\d+)*)?(?::(\w+))?", spec)
    if found is None or not found[2]:
        raise UsageError("it is no shape", place=place, remedy="write 1x3x32x32, 1x12:int64 or ids=1x12:int64")
    shape = [int(size) for size in found[2].split("x")]
    if not 0 < math.prod(shape) <= LARGEST:
        raise UsageError(
            f"it holds {math.prod(shape):,} elements",
            place=place,
            remedy=f"give sizes from 1 up, {LARGEST:,} elements at most",
        )
    dtype = found[3] or "float32"
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    generator = torch.Generator().manual_seed(seed)
    kind: torch.dtype = getattr(torch, dtype)
    if kind.is_floating_point:
        return found[1] or "", torch.randn(shape, generator=generator).to(kind)
    return found[1] or "", torch.randint(0, 2, shape, generator=generator).to(kind)


# ---- calibration ---------------------------------------------------------------------------------------------------


def read_calibration(path: Path, model: nn.Module, example: Any, batch: int) -> list[tuple[Any, Any]]:
    """Batches of (inputs, targets or None) from an .npz or .safetensors file; inputs are nested like ``example``.

    An array called ``targets`` holds the targets. With one input, its array may have any name; with several, arrays
    bear the names of forward's arguments. Axis 0 counts samples.
    """
    arrays = _arrays(path)
    targets = arrays.pop(TARGETS, None)
    if not arrays:
        raise UsageError(
            "it holds no inputs", place=str(path), remedy=f"store an array `inputs`, and `{TARGETS}` if any"
        )
    named = _arranged(arrays, model, example, path)
    for name, (array, like) in named.items():
        _fits(name, array, like, path)
    count = {len(array) for array, _ in named.values()} | ({len(targets)} if targets is not None else set())
    if len(count) != 1:
        raise UsageError(f"arrays have different numbers of samples: {sorted(count)}", place=str(path))
    result: list[tuple[Any, Any]] = []
    for start in range(0, count.pop(), batch):
        part = {name: array[start : start + batch].to(like.dtype) for name, (array, like) in named.items()}
        inputs: Any = part if isinstance(example, Mapping) else tuple(part.values())
        result.append((inputs, None if targets is None else targets[start : start + batch]))
    return result


def _arranged(
    arrays: dict[str, torch.Tensor], model: nn.Module, example: Any, path: Path
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each array beside the example input it stands for, by name, in the order of the call."""
    import torch

    if isinstance(example, Mapping):
        wanted = dict(example)
    else:
        values = list(example) if isinstance(example, (tuple, list)) else [example]
        wanted = dict(zip(_arguments(model, len(values)), values, strict=True))
    if not all(isinstance(value, torch.Tensor) for value in wanted.values()):
        raise UsageError(
            "an input of this model is no plain tensor",
            place=str(path),
            remedy="calibrate from Python: coppice.compress",
        )
    if len(wanted) == len(arrays) == 1:
        name, like = next(iter(wanted.items()))
        return {name: (next(iter(arrays.values())), like)}
    for name in arrays:
        if name not in wanted:
            raise unknown_name("input", name, [*wanted, TARGETS])
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise UsageError(
            f"there is no array {missing[0]!r}", place=str(path), remedy="name arrays like forward's arguments"
        )
    return {name: (arrays[name], like) for name, like in wanted.items()}


def _arguments(model: nn.Module, count: int) -> list[str]:
    names = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
    return names[:count] if len(names) >= count else [f"input_{k}" for k in range(count)]


def _fits(name: str, array: torch.Tensor, like: torch.Tensor, path: Path) -> None:
    if array.ndim != like.ndim or array.shape[1:] != like.shape[1:] or not len(array):
        raise UsageError(
            f"{name!r} has shape {tuple(array.shape)}, and the example input {tuple(like.shape)}",
            place=str(path),
            remedy="all axes but the first, which counts samples, must be as in the example",
        )
    if array.is_floating_point() and not bool(array.isfinite().all()):
        raise UsageError(f"{name!r} holds NaN or infinity", place=str(path), remedy="clean the data first")


def _arrays(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UsageError("there is no such file", place=str(path), remedy="give an .npz or .safetensors file")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".npz":
        return _npz(path)
    raise UsageError(
        f"{path.suffix or 'a file without ending'} is not read", place=str(path), remedy="use .npz or .safetensors"
    )


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _small_enough(path.stat().st_size, path)
    try:
        return dict(load_file(str(path)))
    except SafetensorError as error:
        raise UsageError(f"it is no safetensors file: {error}", place=str(path)) from None


def _npz(path: Path) -> dict[str, torch.Tensor]:
    import numpy as np
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            _small_enough(sum(entry.file_size for entry in archive.infolist()), path)
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (zipfile.BadZipFile, ValueError, TypeError, EOFError) as error:
        raise UsageError(f"it is no .npz file of plain arrays: {error}", place=str(path)) from None


def _small_enough(size: int, path: Path) -> None:
    if size > MAX_BYTES:
        raise UsageError(f"it holds {size:,} bytes", place=str(path), remedy=f"at most {MAX_BYTES:,} are read")
