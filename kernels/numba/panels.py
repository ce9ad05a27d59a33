"""Panels of pixels in vector registers, as values that numba's functions may hold: what an accumulator needs to be.

numba keeps an array of sums in memory and vectorises loops, not values that live across loops. A panel is an LLVM array
of vectors, which LLVM takes apart into registers; sixteen lanes are one, two or four of them, whatever the machine has.
"""

# mypy: disable-error-code="misc, untyped-decorator"
# numba is not annotated: its base classes and decorators are Any.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, register_model

LANES = 16

_VECTOR = ir.VectorType(ir.FloatType(), LANES)


class Panel(types.Type):
    """So many vectors of sixteen float32."""

    def __init__(self, vectors: int) -> None:
        self.vectors = vectors
        super().__init__(name=f"Panel({vectors})")


@register_model(Panel)
class _PanelModel(models.PrimitiveModel):
    def __init__(self, manager: Any, panel: Panel) -> None:
        super().__init__(manager, panel, ir.ArrayType(_VECTOR, panel.vectors))


def _vectors(builder: Any, panel: Any) -> list[Any]:
    return [builder.extract_value(panel, index) for index in range(panel.type.count)]


def _panel(builder: Any, vectors: list[Any]) -> Any:
    panel = ir.Constant(ir.ArrayType(_VECTOR, len(vectors)), ir.Undefined)
    for index, vector in enumerate(vectors):
        panel = builder.insert_value(panel, vector, index)
    return panel


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _places(context: Any, builder: Any, array: tuple[Any, Any], index: Any, last: Any, vectors: int) -> list[Any]:
    """Pointers to vectors side by side from ``index`` on, but the last of them, which is ``last`` elements from it."""
    data = context.make_array(array[0])(context, builder, array[1]).data
    step = [index.type(LANES * v) for v in range(vectors - 1)] + [last]
    elements = [builder.gep(data, [builder.add(index, offset)]) for offset in step]
    return [builder.bitcast(element, _VECTOR.as_pointer()) for element in elements]


@intrinsic(prefer_literal=True)
def splat(_: Any, vectors: Any, value: Any) -> Any:
    """A panel with ``value`` in all its lanes; ``vectors`` is a constant."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _panel(builder, [_splat(builder, arguments[1])] * signature.return_type.vectors)

    return Panel(vectors.literal_value)(vectors, types.float32), generate


@intrinsic(prefer_literal=True)
def load(_: Any, vectors: Any, array: Any, index: Any, last: Any) -> Any:
    """The panel at ``array[index:]``, its last vector at ``array[index + last:]``; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = signature.args[1], arguments[1]
        places = _places(context, builder, held, arguments[2], arguments[3], signature.return_type.vectors)
        return _panel(builder, [builder.load(place, align=4) for place in places])

    return Panel(vectors.literal_value)(vectors, array, types.int64, types.int64), generate


@intrinsic
def store(_: Any, array: Any, index: Any, last: Any, panel: Any) -> Any:
    """Writes a panel where :func:`load` would find it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = signature.args[0], arguments[0]
        vectors = _vectors(builder, arguments[3])
        for place, vector in zip(
            _places(context, builder, held, arguments[1], arguments[2], len(vectors)), vectors, strict=True
        ):
            builder.store(vector, place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, panel), generate


@intrinsic
def multiply_add(_: Any, value: Any, panel: Any, total: Any) -> Any:
    """``value * panel + total``, rounded once where the machine can."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        function = get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
        value = _splat(builder, arguments[0])
        both = zip(_vectors(builder, arguments[1]), _vectors(builder, arguments[2]), strict=True)
        return _panel(builder, [builder.call(function, [value, vector, sums]) for vector, sums in both])

    return total(types.float32, panel, total), generate


@intrinsic
def clamp(_: Any, panel: Any, lower: Any, upper: Any) -> Any:
    """``min(max(panel, lower), upper)``; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        low, high = (_splat(builder, bound) for bound in arguments[1:])
        clamped = []
        for vector in _vectors(builder, arguments[0]):
            raised = builder.select(builder.fcmp_ordered("<", vector, low), low, vector)
            clamped.append(builder.select(builder.fcmp_ordered(">", raised, high), high, raised))
        return _panel(builder, clamped)

    return panel(panel, types.float32, types.float32), generate
