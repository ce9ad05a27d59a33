"""The windows of convolutions and poolings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coppice.kernels._buffers import Buffer
from coppice.kernels._errors import KernelError


@dataclass(frozen=True)
class Window:
    """How a convolution or a pooling walks over its input, each as (vertical, horizontal).

    The columns of ``matmul`` are those of ``weight.flatten(1)`` of a torch convolution: (channel, ky, kx). ``padding``
    is the number of zeros before the first row and column; there are as many after the last, unless ``after`` says
    otherwise.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    after: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            if not all(least <= n < 1 << 31 for n in getattr(self, name)):
                remedy = f"give two integers from {least} on"
                raise KernelError(f"{getattr(self, name)}", place=f"Window.{name}", remedy=remedy)

    def out(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the result for so many of the input; 0 where the kernel does not fit."""
        after = self.padding if self.after is None else self.after
        sizes = []
        for axis, size in enumerate((height, width)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            room = size + self.padding[axis] + after[axis] - reach
            sizes.append(room // self.stride[axis] + 1 if room >= 0 else 0)
        return sizes[0], sizes[1]


def fill_window(held: Any, window: Window, x: Buffer, out: Buffer) -> None:
    """Writes a ``coppice_window`` of ``abi.h``."""
    channels, height, width = x.array.shape
    held.channels, held.height, held.width = channels, height, width
    held.row_stride = max(width, x.steps[1])
    held.channel_stride = max(x.steps[0], max(0, height - 1) * held.row_stride + width)
    held.kernel_y, held.kernel_x = window.kernel
    held.stride_y, held.stride_x = window.stride
    held.dilation_y, held.dilation_x = window.dilation
    held.pad_y, held.pad_x = window.padding
    held.out_height, held.out_width = out.array.shape[1:]
