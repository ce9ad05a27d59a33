"""Measures the layers beside ``matmul`` against torch's: depthwise convolutions, norms, softmax, pooling, elementwise.

python benchmarks/layers.py [--only depthwise] [--repetitions 40] [--docs docs/kernels.md]

torch computes in fp32, where it has a choice in the faster of its two layouts; ours are channel-major. Every kernel is
compared with torch before it is timed, and all of one layer take turns in one process, in one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from page import put, table
from torch import Tensor
from torch.nn import functional

from coppice import kernels
from coppice.kernels import Window
from coppice.kernels.bench.machine import pinned, this_machine, versions
from coppice.kernels.bench.measure import turns
from coppice.kernels.bench.statistics import differs, paired

Call = Callable[[], object]

#: Those of MobileNetV1 that differ, and one each of the kinds that EfficientNet adds: kernel, stride, channels, size.
DEPTHWISE = (
    (3, 1, 32, 112), (3, 2, 64, 112), (3, 1, 128, 56), (3, 2, 128, 56), (3, 1, 256, 28), (3, 2, 256, 28),
    (3, 1, 512, 14), (3, 2, 512, 14), (3, 1, 1024, 7), (5, 2, 144, 56), (5, 1, 240, 28), (5, 1, 672, 14),
)  # fmt: skip
#: And how far a result may be off, relative to the greatest.
TYPES = {"fp32": (torch.float32, 1e-5), "fp16": (torch.float16, 4e-3), "bf16": (torch.bfloat16, 3e-2)}


@dataclass(frozen=True)
class Layer:
    """What is measured.

    Attributes:
        text: primitive and shape.
        x: activations, as our kernel has them.
        ours: binds the kernel to activations, a result and a variant.
        peers: torch's calls, each of which returns what ours computes.
    """

    text: str
    x: Tensor
    ours: Callable[[Tensor, Tensor, str], Call]
    peers: tuple[Callable[[], Tensor], ...]

    @property
    def primitive(self) -> str:
        return self.text.split()[0].rstrip(":")


def both_layouts(function: Callable[[Tensor], Tensor], image: Tensor) -> tuple[Callable[[], Tensor], ...]:
    """Of torch on a batch of one image."""
    formats = (torch.contiguous_format, torch.channels_last)
    return tuple(partial(function, image[None].contiguous(memory_format=layout)) for layout in formats)


def depthwise(kernel: int, stride: int, channels: int, size: int) -> Layer:
    weight, image, pad = torch.randn(channels, kernel, kernel), torch.randn(channels, size, size), kernel // 2
    window = Window((kernel, kernel), (stride, stride), (pad, pad))
    return Layer(
        f"depthwise {kernel}x{kernel}, stride {stride}: {channels} x {size} x {size}",
        image,
        lambda x, out, variant: kernels.depthwise.bind(weight.numpy(), x, window=window, out=out, variant=variant),
        both_layouts(
            lambda x: functional.conv2d(x, weight[:, None], stride=stride, padding=pad, groups=channels), image
        ),
    )


def norm(channels: int, tokens: int, axis: int) -> Layer:
    weight, bias, rows = torch.randn(channels), torch.randn(channels), torch.randn(tokens, channels)
    return Layer(
        f"norm (layer norm): {tokens} tokens x {channels} channels, {'token' if axis else 'channel'} by "
        f"{'token' if axis else 'channel'}",
        rows if axis else rows.T.contiguous(),
        lambda x, out, variant: kernels.layer_norm.bind(
            x, weight.numpy(), bias.numpy(), axis=axis, out=out, variant=variant
        ),
        (lambda: functional.layer_norm(rows, (channels,), weight, bias),),
    )


def layers() -> Iterator[Layer]:
    for row in DEPTHWISE:
        yield depthwise(*row)
    yield norm(768, 197, 1)
    yield norm(768, 197, 0)
    scores = torch.randn(12 * 197, 197)
    yield Layer(
        "softmax: 2364 x 197",
        scores,
        lambda x, out, variant: kernels.softmax.bind(x, out=out, variant=variant),
        (lambda: functional.softmax(scores, -1),),
    )
    image, window = torch.randn(64, 112, 112), Window((3, 3), (2, 2), (1, 1))
    yield Layer(
        "pooling: maximum, 3x3, stride 2: 64 x 112 x 112",
        image,
        lambda x, out, variant: kernels.max_pool.bind(x, window, out=out, variant=variant),
        both_layouts(lambda x: functional.max_pool2d(x, 3, 2, 1), image),
    )
    small = torch.randn(1024, 7, 7)
    yield Layer(
        "pooling: average of all: 1024 x 7 x 7",
        small,
        lambda x, out, variant: kernels.average_pool.bind(x, out=out, variant=variant),
        both_layouts(lambda x: x.mean((2, 3), keepdim=True), small),
    )
    x, z = torch.randn(256, 784), torch.randn(256, 784)
    yield Layer(
        "eltwise: relu(x + z): 256 x 784",
        x,
        lambda x, out, variant: kernels.eltwise.bind(x, z.to(x.dtype), activation="relu", out=out, variant=variant),
        (lambda: (x + z).relu_(),),
    )
    yield Layer(
        "eltwise: gelu(x): 256 x 784",
        x,
        lambda x, out, variant: kernels.eltwise.bind(x, activation="gelu", out=out, variant=variant),
        (lambda: functional.gelu(x),),
    )


def variants(primitive: str) -> list[str]:
    """Those with vectors, the widest first."""
    found = [v.name for v in kernels.variants() if v.available and v.primitive == primitive]
    return [name for name in reversed(found) if name not in ("generic", "numpy", "numba")]


def checked(layer: Layer, variant: str, kind: str) -> Call:
    """The bound kernel, which has computed what torch does."""
    dtype, allowed = TYPES[kind]
    wanted = layer.peers[0]().reshape(-1)
    if layer.text.endswith("channel by channel"):
        wanted = layer.peers[0]().T.reshape(-1)
    x = layer.x.to(dtype)
    shape = layer.peers[0]().shape[1:] if layer.x.ndim == 3 else layer.x.shape
    out = torch.empty(shape, dtype=dtype)
    call = layer.ours(x, out, variant)
    call()
    error = float((out.reshape(-1).float() - wanted).abs().max() / wanted.abs().max())
    if not error <= allowed:
        raise SystemExit(f"{layer.text}: {variant} {kind} is off by {error:.2g} of the greatest, more than {allowed}")
    return call


def row(layer: Layer, columns: Sequence[tuple[str, str]], repetitions: int) -> list[str]:
    """Microseconds of torch, and ratios."""
    names = variants(layer.primitive)
    calls = {column: checked(layer, *column) for column in columns if column[0] in names}
    times = turns([*layer.peers, *calls.values()], repetitions, 1)
    peers = times[: len(layer.peers)]
    best = peers[np.argmin(np.median(peers, axis=1))]
    cells = dict(zip(calls, (cell(best / held) for held in times[len(peers) :]), strict=True))
    low, middle, high = np.percentile(1e6 * best, (10, 50, 90))
    return [layer.text, f"{middle:.0f} ({low:.0f}-{high:.0f})", *(cells.get(column, "-") for column in columns)]


def cell(ratios: np.ndarray) -> str:
    """Median with its 10th and 90th percentiles; ``=`` before what may as well be 1."""
    p10, median, p90 = np.percentile(ratios, (10, 50, 90))
    return f"{'' if differs(float(median), paired(ratios)) else '= '}{median:.2f} ({p10:.2f}-{p90:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="layers whose text begins so")
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--docs", type=Path, help="write the table between the marks of this page")
    asked = parser.parse_args()
    torch.manual_seed(0)
    with pinned(1), torch.inference_mode():
        chosen = [layer for layer in layers() if layer.text.startswith(asked.only)]
        names = dict.fromkeys(name for layer in chosen for name in variants(layer.primitive))
        columns = [(name, kind) for name in names for kind in TYPES]
        rows = [row(layer, columns, asked.repetitions) for layer in chosen]
    head = ["times of torch over those of the kernels", "torch fp32, us", *(" ".join(column) for column in columns)]
    text = (
        f"{this_machine().cpu}, one thread, torch {versions()['torch']}, {asked.repetitions} rounds of CPU time, "
        "medians with their 10th and 90th percentiles; `=`: no significant difference.\n\n" + table(head, rows)
    )
    print(text)
    if asked.docs is not None:
        put(asked.docs, "layers", text)


if __name__ == "__main__":
    main()
