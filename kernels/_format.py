"""Weights as bytes: a safetensors file whose metadata say what the arrays mean.

Metadata: ``format`` is ``coppice.weight/1``; ``rows``, ``cols``, ``slab``, ``height`` in decimal, and ``kept`` and
``group`` unless they are 0; ``type`` of values. Tensors: ``values``, and those of the others that the weight has, as
`Weight` holds them, bfloat16 as its bits; which there are tells the layout. Code is never stored: it is machine code.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from coppice.kernels._errors import KernelError
from coppice.kernels._types import TYPES, Array

if TYPE_CHECKING:
    from coppice.kernels._weight import Weight

FORMAT = "coppice.weight/1"
SIZES = ("rows", "cols", "slab", "height")
OPTIONAL_SIZES = ("kept", "group")
ARRAYS = ("values", "starts", "columns", "scales", "masks", "positions", "offsets", "lanes")
_REMEDY = "write it with Weight.to_bytes() of this version"


def pack(weight: Weight) -> bytes:
    """The file's content."""
    from safetensors.numpy import save

    arrays: dict[str, Array | None] = {name: getattr(weight, name) for name in ARRAYS}
    sizes = {name: str(getattr(weight, name)) for name in (*SIZES, *OPTIONAL_SIZES)}
    facts = {name: size for name, size in sizes.items() if name in SIZES or size != "0"}
    facts |= {"format": FORMAT, "type": weight.type}
    return _in_order(save({name: array for name, array in arrays.items() if array is not None}, facts))


def _in_order(data: bytes) -> bytes:
    """The same file with its header in order: safetensors writes metadata in another one each time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    return data[:8] + header.ljust(end - 8) + data[end:]


def unpack(data: bytes) -> dict[str, Any]:
    """The arguments of `Weight` that ``data`` holds, not yet checked against each other.

    Raises:
        KernelError: it is no safetensors file, or not one of a weight.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: of a type that numpy lacks
        raise KernelError(f"not a safetensors file of arrays: {error}", place="data", remedy=_REMEDY) from error
    size = int.from_bytes(data[:8], "little")
    facts = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    if facts.get("format") != FORMAT:
        raise KernelError(f"its format is {facts.get('format')!r}, not {FORMAT!r}", place="data", remedy=_REMEDY)
    sizes = (*SIZES, *(name for name in OPTIONAL_SIZES if name in facts))
    if facts.get("type") not in TYPES or not all(_is_size(facts.get(name)) for name in sizes):
        raise KernelError(f"its metadata are {facts}", place="data", remedy=_REMEDY)
    if "values" not in arrays or not set(arrays) <= set(ARRAYS):
        raise KernelError(f"its tensors are {sorted(arrays)}, not {ARRAYS}", place="data", remedy=_REMEDY)
    return {name: int(facts[name]) for name in sizes} | {"type": facts["type"]} | arrays


def _is_size(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 10
