"""``layer_norm`` and ``rms_norm`` over channels that are rows or columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._call import Call, address, primitive, refuse_overlap, shaped, type_number
from coppice.kernels._errors import KernelError
from coppice.kernels._pool import Pool

_REMEDY = "x and out are [channels, tokens], or [tokens, channels] with axis=1; weight and bias float32 [channels]"


@primitive
def layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    eps: float = 1e-5,
    axis: int = 0,
    out: Any = None,
    pool: Pool | None = None,
    variant: str | None = None,
) -> Job:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` of each token over its channels, in float32.

    The variance is the mean square of what differs from the mean (Ba, Kiros and Hinton, 2016), so that a large mean
    costs no digits. Arrays are used in place as by :func:`matmul`. NaN and infinities make NaN of their token alone.

    Args:
        x: [channels, tokens], or [tokens, channels] with ``axis=1``; float32, float16 or bfloat16.
        weight, bias: float32 [channels]; None: 1 and 0.
        eps: 0 or more.
        axis: that of the channels; -1 is the last.
        out: as ``x``; written and returned; None: a new one of the same kind. May be ``x`` itself.
        pool: threads to share the work; None: the caller's thread alone.
        variant: a name from :func:`variants`; None: the fastest.

    Raises:
        KernelError: a shape, type, stride, device or overlap that is not as above; a gradient is wanted.
        IsaError: the variant is unknown, or cannot run here.
        KernelsUnavailable: there is neither a C library nor numba.
    """
    return _norm(False, x, weight, bias, eps, axis, out, pool, variant)


@primitive
def rms_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    eps: float = 1e-6,
    axis: int = 0,
    out: Any = None,
    pool: Pool | None = None,
    variant: str | None = None,
) -> Job:
    """``x / sqrt(mean(x * x) + eps) * weight + bias`` of each token over its channels (Zhang and Sennrich, 2019).

    Arguments and errors are those of :func:`layer_norm`.
    """
    return _norm(True, x, weight, bias, eps, axis, out, pool, variant)


@dataclass(eq=False)
class Job(Call):
    """Checked arguments of one call."""

    primitive: ClassVar[str] = "norm"
    rms: bool
    x: Buffer
    weight: Buffer | None
    bias: Buffer | None
    eps: float
    axis: int
    out: Buffer

    def fill(self, args: Any) -> None:
        args.kind = int(self.rms)
        args.type, args.token_rows, args.epsilon = type_number(self.x.type), self.axis, self.eps
        args.channels, args.tokens = self.x.array.shape[self.axis], self.x.array.shape[1 - self.axis]
        args.x, args.x_stride = address(self.x), self.x.stride
        args.y, args.y_stride = address(self.out), self.out.stride
        args.weight, args.bias = address(self.weight), address(self.bias)


def _norm(
    rms: bool, x: Any, weight: Any, bias: Any, eps: float, axis: int, out: Any, pool: Pool | None, variant: str | None
) -> Job:
    inputs = buffer("x", x, 2)
    if axis not in (-2, -1, 0, 1):
        raise KernelError(f"{axis} is not in -2 .. 1", place="axis", remedy="0: [channels, tokens], 1: the other way")
    if not 0 <= eps < float("inf"):
        raise KernelError(f"{eps} is not a number from 0 on", place="eps", remedy="use that of the trained model")
    shape = inputs.array.shape
    if out is None:
        out = empty_like(x, shape)
    outputs = shaped("out", buffer("out", out, 2), shape, inputs.type, _REMEDY)
    factors: dict[str, Buffer | None] = {"weight": None, "bias": None}
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            factors[name] = shaped(name, buffer(name, value, 1), (shape[axis],), "float32", _REMEDY)
    refuse_overlap(outputs, {"x": inputs, **factors}, in_place=("x",))
    return Job(out, pool, variant, rms, inputs, factors["weight"], factors["bias"], eps, axis % 2, outputs)
