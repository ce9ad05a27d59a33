"""``input_gradient``: the gradient of the activations that went into a product, from that of the result."""

from __future__ import annotations

from math import prod
from typing import Any

from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._call import refuse_overlap, shaped
from coppice.kernels._errors import KernelError
from coppice.kernels._matmul import matmul
from coppice.kernels._pool import Pool
from coppice.kernels._transposed import Part, Transposed
from coppice.kernels._weight import Weight
from coppice.kernels._window import Window

_REMEDY = "dy is [rows, pixels], out [cols, pixels]; with a window [rows, ...] and [channels, ...]; both of one type"


def input_gradient(
    weight: Weight | Transposed,
    dy: Any,
    *,
    window: Window | None = None,
    size: tuple[int, int] | None = None,
    out: Any = None,
    pool: Pool | None = None,
    variant: str | None = None,
) -> Any:
    """The gradient of ``x`` where that of ``matmul(weight, x, window=window)`` is ``dy``: ``weight.T @ dy``.

    Products of :func:`matmul` throughout: arrays are used in place, sums are float32, the result is of dy's type (in
    float16 what is below 6e-8 is lost: scale the loss up), NaN and infinities propagate, what has no entry takes no
    part. Places of ``x`` that no window covers have the gradient 0.

    Args:
        weight: [rows, cols]. :meth:`Weight.transposed` of it saves the work of transposing it in every call.
        dy: [rows, pixels], with ``window`` [rows, out height, out width].
        window: how the convolution walked over x; a transposed weight knows its own.
        size: height and width of x, with a window; ``out`` says it too.
        out: [cols, pixels], with ``window`` [channels, height, width]; of dy's type; written and returned; None: a new
            one of the same kind as ``dy``. Overlaps ``dy`` nowhere.
        pool: threads to share the work; None: the caller's thread alone.
        variant: of ``matmul``, a name from :func:`variants`; None: the fastest.

    Raises:
        KernelError: a shape, type, stride, device or overlap that is not as above.
        IsaError: the variant is unknown, or cannot run here.
        KernelsUnavailable: there is neither a C library nor numba.
    """
    back = _transposed(weight, window)
    held = buffer("dy", dy, 2 if back.window is None else 3)
    shape = _shape(back, held, size, out)
    if out is None:
        out = empty_like(dy, shape)
    outputs = shaped("out", buffer("out", out, len(shape), packed=back.window is not None), shape, held.type, _REMEDY)
    refuse_overlap(outputs, {"dy": held})
    if back.window is None:
        return matmul(back.parts[0].weight, dy, out=out, pool=pool, variant=variant)
    (down, across), (channels, height, width) = back.window.stride, shape
    if down * across == 1:
        (part,) = back.parts
        x, step = _walk(part, dy, (height, width))
        return matmul(part.weight, x, window=step, out=out, pool=pool, variant=variant)
    if len(back.parts) < down * across:
        out[...] = 0
    room = empty_like(dy, (channels * -(-height // down) * -(-width // across),))
    for part in back.parts:
        own = out[:, part.phase[0] :: down, part.phase[1] :: across]
        x, step = _walk(part, dy, own.shape[1:])
        held_part = room[: prod(own.shape)].reshape(own.shape)
        own[...] = matmul(part.weight, x, window=step, out=held_part, pool=pool, variant=variant)
    return out


def _transposed(weight: Weight | Transposed, window: Window | None) -> Transposed:
    if isinstance(weight, Weight):
        return weight.transposed(window)
    if not isinstance(weight, Transposed):
        fact = f"it is a {type(weight).__name__}"
        raise KernelError(fact, place="weight", remedy="pass a Weight, or better what its transposed() returns")
    if window is not None and window != weight.window:
        fact = f"the weight was transposed for {weight.window}"
        raise KernelError(fact, place="window", remedy="leave it out: a transposed weight knows its own")
    return weight


def _shape(back: Transposed, dy: Buffer, size: tuple[int, int] | None, out: Any) -> tuple[int, ...]:
    """Of ``out``; refuses a dy that does not meet the weight."""
    if back.window is None:
        shaped("dy", dy, (back.rows, dy.array.shape[1]), dy.type, _REMEDY)
        return back.cols, dy.array.shape[1]
    if size is None:
        if out is None:
            raise KernelError("a window does not tell the size of x", place="size", remedy="pass size=x.shape[1:]")
        size = tuple(out.shape[1:])
    height, width = size
    shaped("dy", dy, (back.rows, *back.window.out(height, width)), dy.type, _REMEDY)
    return back.cols // (back.window.kernel[0] * back.window.kernel[1]), height, width


def _walk(part: Part, dy: Any, size: tuple[int, int]) -> tuple[Any, Window]:
    """What of dy a part reads, and how, to give ``size`` rows and columns."""
    assert part.window is not None
    first = [max(0, shift) for shift in part.shift]
    before = [max(0, -shift) for shift in part.shift]
    x = dy[:, first[0] :, first[1] :]
    reach = [step * (taps - 1) + 1 for step, taps in zip(part.window.dilation, part.window.kernel, strict=True)]
    after = [size[axis] - 1 + reach[axis] - x.shape[axis + 1] - before[axis] for axis in range(2)]
    return x, Window(part.window.kernel, (1, 1), (before[0], before[1]), part.window.dilation, (after[0], after[1]))
