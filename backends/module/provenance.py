"""Which attributes of the user's modules the sizes in their calls are computed from.

The model runs once on the example inputs with every whole-number attribute replaced by an integer that remembers where
it came from (`Tracked`): ``x.view(b, n, self.heads, self.dim // self.heads)`` then says what each size means. What the
cut made of those sizes, in the graph, gives equations for the attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from coppice.core.extraction import Sizes

Place = tuple[str, str, int | None]
"""A module's path (of its config: path + "."), an attribute of it, and the position where that is a tuple or list."""
Values = Mapping[Place, int]


class Tracked(int):
    """An integer and how to compute it from attributes; arithmetic with other integers keeps track."""

    places: frozenset[Place]
    compute: Callable[[Values], int]
    scales: set[Place]

    @staticmethod
    def of(value: int, place: Place, scales: set[Place]) -> Tracked:
        return _tracked(value, frozenset([place]), lambda values: values[place], scales)

    def __add__(self, other: Any) -> Any:
        return _combined(self, other, int.__add__, lambda a, b: a + b)

    def __radd__(self, other: Any) -> Any:
        return _combined(self, other, int.__radd__, lambda a, b: b + a)

    def __sub__(self, other: Any) -> Any:
        return _combined(self, other, int.__sub__, lambda a, b: a - b)

    def __rsub__(self, other: Any) -> Any:
        return _combined(self, other, int.__rsub__, lambda a, b: b - a)

    def __mul__(self, other: Any) -> Any:
        return _combined(self, other, int.__mul__, lambda a, b: a * b)

    def __rmul__(self, other: Any) -> Any:
        return _combined(self, other, int.__rmul__, lambda a, b: b * a)

    def __floordiv__(self, other: Any) -> Any:
        return _combined(self, other, int.__floordiv__, lambda a, b: a // b)

    def __rfloordiv__(self, other: Any) -> Any:
        return _combined(self, other, int.__rfloordiv__, lambda a, b: b // a)

    def __neg__(self) -> Any:
        return _tracked(-int(self), self.places, lambda values: -self.compute(values), self.scales)

    def __float__(self) -> float:
        self.scales.update(self.places)
        return float(int(self))

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        if isinstance(other, float):
            self.scales.update(self.places)
        return int(self).__pow__(int(other)) if isinstance(other, int) else float(int(self)) ** other

    def __truediv__(self, other: Any) -> Any:
        self.scales.update(self.places)
        return int(self) / other

    def __deepcopy__(self, memo: Any) -> Tracked:
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _tracked(value: int, places: frozenset[Place], compute: Callable[[Values], int], scales: set[Place]) -> Tracked:
    made = int.__new__(Tracked, value)
    made.places, made.compute, made.scales = places, compute, scales
    return made


def _combined(a: Tracked, b: Any, plain: Callable[[int, Any], Any], op: Callable[[int, int], int]) -> Any:
    value = plain(a, b)
    if value is NotImplemented or not isinstance(b, int):
        return value
    places = a.places | b.places if isinstance(b, Tracked) else a.places

    def compute(values: Values) -> int:
        return op(a.compute(values), b.compute(values) if isinstance(b, Tracked) else int(b))

    return _tracked(value, places, compute, a.scales)


@dataclass
class Use:
    """The whole numbers in the arguments of one call of a torch function."""

    numbers: tuple[int, ...]


@dataclass
class Provenance:
    """The uses of a run in order, by the module in whose forward they are made; ``scales`` are the attributes that also
    went into a floating point number.
    """

    uses: dict[str, list[Use]] = field(default_factory=dict)
    values: dict[Place, int] = field(default_factory=dict)
    scales: set[Place] = field(default_factory=set)


def observe(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Provenance:
    """Run a structural copy of ``model`` (which keeps its tensors) and note which attributes reach which calls."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, dict(shared))
    found = Provenance()
    for owner, name, value in attributes(twin):
        _plant(owner, name, value, found)
    stack: list[str] = [""]
    for path, module in twin.named_modules():
        module.register_forward_pre_hook(lambda _m, _a, path=path: stack.append(path), prepend=True)
        module.register_forward_hook(lambda *_: _leave(stack), always_call=True)
    with torch.no_grad(), _Watch(found, stack):
        twin.eval()(*args, **kwargs)
    return found


def _leave(stack: list[str]) -> None:
    stack.pop()


class _Watch(TorchFunctionMode):
    def __init__(self, found: Provenance, stack: list[str]) -> None:
        super().__init__()
        self._found, self._stack = found, stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        numbers = tuple(_numbers((args, kwargs or {})))
        if any(isinstance(n, Tracked) for n in numbers):
            owner = self._stack[-1]
            self._found.uses.setdefault(owner, []).append(Use(numbers))
        return func(*args, **(kwargs or {}))


def _numbers(tree: Any) -> Iterator[int]:
    for leaf in tree_leaves(tree, is_leaf=lambda x: isinstance(x, slice)):
        for one in (leaf.start, leaf.stop) if isinstance(leaf, slice) else (leaf,):
            if isinstance(one, int) and not isinstance(one, bool):
                yield one


# ---- attributes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """Something with attributes: a module at ``path``, or its config (``path`` + ".")."""

    path: str
    thing: Any


def owners(model: nn.Module) -> Iterator[Owner]:
    """The modules of ``model`` and their configs, each once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        yield Owner(path, module)
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "__dict__") and id(config) not in seen:
            seen.add(id(config))
            yield Owner(f"{path}.", config)


def attributes(model: nn.Module) -> list[tuple[Owner, str, Any]]:
    """Every attribute that is a whole number, or a tuple or list of them."""
    return [
        (owner, name, value)
        for owner in owners(model)
        for name, value in vars(owner.thing).items()
        if _whole(value) or (isinstance(value, (tuple, list)) and any(map(_whole, value)))
    ]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plant(owner: Owner, name: str, value: Any, found: Provenance) -> None:
    def one(value: int, at: int | None) -> Tracked:
        place = (owner.path, name, at)
        found.values[place] = int(value)
        return Tracked.of(value, place, found.scales)

    new: Any
    if isinstance(value, (tuple, list)):
        if type(value) not in (tuple, list):
            return
        new = type(value)(one(v, k) if _whole(v) else v for k, v in enumerate(value))
    else:
        new = one(value, None)
    _assign(owner.thing, name, new)


def _assign(thing: Any, name: str, value: Any) -> None:
    vars(thing)[name] = value


# ---- equations -------------------------------------------------------------------------------------------------------


def solve(found: Provenance, calls: Iterable[Sizes]) -> dict[Place, int]:
    """New values of attributes, with which the sizes they were seen in become what the cut made of them."""
    equations = [(n, new) for use, call, at in _matched(found, calls) for n, new in _pairs(use, call, at)]
    values: dict[Place, int] = {}
    for number, new in equations:
        if len(number.places) == 1 and int(number) == found.values[next(iter(number.places))]:
            values.setdefault(next(iter(number.places)), new)
    for number, new in equations:
        open_places = [place for place in number.places if place not in values]
        if len(open_places) == 1:
            fitting = _fit(number, new, {**found.values, **values}, open_places[0])
            if fitting is not None:
                values[open_places[0]] = fitting
    return {place: value for place, value in values.items() if value != found.values[place]}


def _matched(found: Provenance, calls: Iterable[Sizes]) -> Iterator[tuple[Use, Sizes, int]]:
    """Calls of the graph beside the uses they came from: per module in order, by the numbers before the cut."""
    waiting = {owner: list(uses) for owner, uses in found.uses.items()}
    for call in calls:
        if call.old == call.new and len(call.old) < 2:
            continue  # a single number that stays, an axis say, could be any
        uses = waiting.get(call.modules[-1] if call.modules else "", [])
        for k, use in enumerate(uses if len(call.old) == len(call.new) else []):
            at = _offset(use.numbers, call.old)
            if at is not None:
                del uses[: k + 1]
                yield use, call, at
                break


def _offset(numbers: Sequence[int], old: Sequence[int | None]) -> int | None:
    for at in range(len(numbers) - len(old) + 1):
        if all(o is None or n in (o, -1) or o == -1 for n, o in zip(numbers[at:], old, strict=False)):
            return at
    return None


def _pairs(use: Use, call: Sizes, at: int) -> Iterator[tuple[Tracked, int]]:
    for number, old, new in zip(use.numbers[at:], call.old, call.new, strict=False):
        if isinstance(number, Tracked) and old is not None and new is not None and int(number) == old:
            yield number, new


def _fit(number: Tracked, wanted: int, values: dict[Place, int], place: Place) -> int | None:
    before = values[place]
    candidates = sorted(range(1, 4 * max(before, wanted) + 1), key=lambda v: abs(v - before))
    for candidate in candidates:
        try:
            if number.compute({**values, place: candidate}) == wanted:
                return candidate
        except ZeroDivisionError:
            continue
    return None


class Width(int):
    """An attribute from which a module computes sizes and a scale: the new size, which scales as the old one did."""

    old: int

    def __float__(self) -> float:
        return float(self.old)

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return self.old**other if isinstance(other, float) else int(self) ** other

    def __truediv__(self, other: Any) -> Any:
        return self.old / other

    def __reduce__(self) -> Any:
        return width, (int(self), self.old)


def width(new: int, old: int) -> Width:
    """A `Width` of ``new`` that scales as ``old``."""
    made = Width(new)
    made.old = old
    return made


@dataclass(frozen=True)
class Attribute:
    """A new value for an attribute; ``scales_as`` is the old one where it is also seen in floating point numbers."""

    path: str
    name: str
    at: int | None
    value: int
    scales_as: int | None


def changes(found: Provenance, values: Mapping[Place, int]) -> list[Attribute]:
    """What `solve` found, as attributes to set."""
    return [
        Attribute(*place, value, found.values[place] if place in found.scales else None)
        for place, value in values.items()
    ]


def assign(model: nn.Module, attributes: Iterable[Attribute]) -> None:
    """Set attributes of ``model``; one that a scale is computed from becomes a `Width`."""
    things = {owner.path: owner.thing for owner in owners(model)}
    for attribute in attributes:
        thing = things.get(attribute.path)
        if thing is None or attribute.name not in vars(thing):
            continue
        scale = attribute.scales_as
        new: Any = attribute.value if scale is None else width(attribute.value, scale)
        held = vars(thing)[attribute.name]
        if attribute.at is not None:
            new = type(held)(new if k == attribute.at else v for k, v in enumerate(held))
        _assign(thing, attribute.name, new)
