"""``max_pool`` and ``average_pool``, over windows or over everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coppice.kernels._buffers import Buffer, buffer, empty_like
from coppice.kernels._call import Call, address, primitive, refuse_overlap, shaped, type_number
from coppice.kernels._errors import KernelError
from coppice.kernels._pool import Pool
from coppice.kernels._window import Window, fill_window


@primitive
def max_pool(
    x: Any,
    window: Window | None = None,
    *,
    ceil_mode: bool = False,
    out: Any = None,
    pool: Pool | None = None,
    variant: str | None = None,
) -> Job:
    """The greatest element of each channel in each window; NaN where there is one.

    Arguments and errors are those of :func:`average_pool`; padding is -inf.
    """
    return _pool_over("max", x, window, ceil_mode, False, out, pool, variant)


@primitive
def average_pool(
    x: Any,
    window: Window | None = None,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    out: Any = None,
    pool: Pool | None = None,
    variant: str | None = None,
) -> Job:
    """The mean of the elements of each channel in each window, summed in float32.

    Arrays are used in place as by :func:`matmul`.

    Args:
        x: [channels, height, width], float32, float16 or bfloat16.
        window: how the windows lie; None: one over everything (global pooling).
        ceil_mode: windows that begin inside of x or of the padding before it, but end behind the padding after it, are
            there too, as in torch; what they have behind the padding does not count.
        count_include_pad: zeros of the padding count in the mean, as in torch.
        out: [channels, out height, out width], of x's type; written and returned; None: a new one of the same kind as
            ``x``. Overlaps nothing else.
        pool: threads to share the work; None: the caller's thread alone.
        variant: a name from :func:`variants`; None: the fastest.

    Raises:
        KernelError: a shape, type, stride, device or overlap that is not as above; a gradient is wanted.
        IsaError: the variant is unknown, or cannot run here.
        KernelsUnavailable: there is neither a C library nor numba.
    """
    return _pool_over("average", x, window, ceil_mode, count_include_pad, out, pool, variant)


@dataclass(eq=False)
class Job(Call):
    """Checked arguments of one call."""

    primitive: ClassVar[str] = "pooling"
    kind: str
    x: Buffer
    window: Window
    count_padding: bool
    out: Buffer

    @property
    def after(self) -> tuple[int, int]:
        """Padding behind the last row and column."""
        return self.window.padding if self.window.after is None else self.window.after

    def fill(self, args: Any) -> None:
        fill_window(args.window, self.window, self.x, self.out)
        args.kind, args.count_padding = ("max", "average").index(self.kind), self.count_padding
        args.after_y, args.after_x = self.after
        args.type = type_number(self.x.type)
        args.x, args.y, args.y_stride = address(self.x), address(self.out), self.out.stride


def _pool_over(
    kind: str,
    x: Any,
    window: Window | None,
    ceil_mode: bool,
    count_padding: bool,
    out: Any,
    pool: Pool | None,
    variant: str | None,
) -> Job:
    inputs = buffer("x", x, 3)
    channels, height, width = inputs.array.shape
    if window is None:
        if not height or not width:
            raise KernelError(f"it is {height} x {width}", place="x", remedy="pool over one element at least")
        window = Window((height, width))
    shape = (channels, *_out_sizes(window, height, width, ceil_mode))
    if out is None:
        out = empty_like(x, shape)
    remedy = "x is [channels, height, width], out [channels, out height, out width] of x's type"
    outputs = shaped("out", buffer("out", out, 3, packed=True), shape, inputs.type, remedy)
    refuse_overlap(outputs, {"x": inputs})
    return Job(out, pool, variant, kind, inputs, window, count_padding, outputs)


def _out_sizes(window: Window, height: int, width: int, ceil_mode: bool) -> tuple[int, int]:
    if not ceil_mode:
        return window.out(height, width)
    after = window.padding if window.after is None else window.after
    longer = after[0] + window.stride[0] - 1, after[1] + window.stride[1] - 1
    sizes = Window(window.kernel, window.stride, window.padding, window.dilation, longer).out(height, width)
    (down, right), (top, left) = window.stride, window.padding
    return min(sizes[0], -(-(height + top) // down)), min(sizes[1], -(-(width + left) // right))
