"""Input and output structures (pytrees) as JSON, without naming a class of the user's."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree

from coppice.core.errors import UsageError

_LEAF = object()


def spec_to_json(spec: pytree.TreeSpec) -> Any:
    """Lists, tuples and dicts by name; any other container with string keys becomes a dict of its fields."""
    if spec.is_leaf():
        return "*"
    children = [spec_to_json(child) for child in spec.children()]
    if spec.type is tuple or spec.type is list:
        return {"kind": spec.type.__name__, "items": children}
    if spec.type is type(None):
        return {"kind": "none", "items": []}
    keys = list(spec.context) if isinstance(spec.context, (list, tuple)) else None
    if keys is not None and len(keys) == 2 and isinstance(keys[1], (list, tuple)):  # dataclass-like: (type, fields)
        keys = list(keys[0]) if isinstance(keys[0], (list, tuple)) else list(keys[1])
    if keys is None or len(keys) != len(children) or not all(isinstance(k, str) for k in keys):
        return {"kind": "tuple", "items": children}
    return {"kind": "dict", "keys": keys, "items": children}


def spec_from_json(data: Any) -> pytree.TreeSpec:
    """The spec that `spec_to_json` wrote; `UsageError` where ``data`` is not one."""
    return pytree.tree_structure(_example(data, 0))


def _example(data: Any, depth: int) -> Any:
    if depth > 64:
        raise UsageError("the structure is nested too deep", place="graph.json")
    if data == "*":
        return _LEAF
    if not isinstance(data, dict) or not isinstance(data.get("items"), list):
        raise UsageError(f"{str(data)[:80]!r} is no input structure", place="graph.json")
    items = [_example(item, depth + 1) for item in data["items"]]
    kind = data.get("kind")
    if kind == "tuple":
        return tuple(items)
    if kind == "list":
        return items
    if kind == "none":
        return None
    if kind == "dict" and isinstance(data.get("keys"), list) and len(data["keys"]) == len(items):
        return {str(key): item for key, item in zip(data["keys"], items, strict=True)}
    raise UsageError(f"{kind!r} is no kind of structure", place="graph.json")
