"""Weights that change: input_gradient, transposes and new values, and networks that train by them, against torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coppice import kernels
from coppice.kernels import Pool, Transposed, Weight, Window, input_gradient, matmul, weight_gradient
from kernelkit import EPSILON, SIZES, UNITS, WINDOWS, available, close

VARIANTS = available("matmul")
GRADIENTS = available("weight_gradient")

Pair = tuple[int, int]
Tensor = torch.Tensor
conv2d = torch.nn.functional.conv2d


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def made(rows: int, cols: int, density: float, height: int, kind: Any, seed: int = 0) -> Weight:
    """Height 0: dense."""
    random = np.random.default_rng(seed)
    kept = random.random((rows, cols)) < density
    matrix = np.where(kept, random.standard_normal((rows, cols)), 0).astype(np.float32)
    return Weight.sparse(matrix, height=height, type=kind) if height else Weight.dense(matrix, type=kind)


def dense_of(weight: Weight, values: Tensor) -> Tensor:
    """[rows, cols] with these values at the entries."""
    band, column = (torch.from_numpy(places) for places in weight.places())
    padded = values.new_zeros(weight.bands * weight.height, weight.cols)
    padded[band[:, None] * weight.height + torch.arange(weight.height), column[:, None]] = values
    return padded[: weight.rows]


def agrees(dx: Tensor, exact: Tensor, magnitude: Tensor, terms: int) -> None:
    """Of n products and the scale, n + 1 roundings err by EPSILON / 2 of all magnitudes at most; twice it."""
    assert dx.shape == exact.shape
    close(dx, exact, (terms + 1) * EPSILON * magnitude)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    cols=st.integers(0, 60),
    pixels=st.integers(0, 100),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    heights=st.tuples(st.sampled_from([0, 1, 4, 16]), st.sampled_from([1, 4])),
    weight_type=st.sampled_from(["float32", "float16", "bfloat16", "int8"]),
    kind=st.sampled_from(sorted(UNITS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_products(
    variant: str,
    rows: int,
    cols: int,
    pixels: int,
    density: float,
    heights: Pair,
    weight_type: Any,
    kind: str,
    seed: int,
) -> None:
    weight = made(rows, cols, density, heights[0], weight_type, seed)
    dy = torch.randn(rows, pixels, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, kind))
    matrix = torch.from_numpy(weight.to_dense()).double()
    exact, magnitude = matrix.T @ dy.double(), matrix.abs().T @ dy.double().abs()
    back = weight.transposed(height=heights[1])
    assert {part.weight.type for part in back.parts} == {"float32" if weight_type == "int8" else weight_type}
    out = torch.empty(cols, pixels, dtype=dy.dtype)
    assert input_gradient(back, dy, out=out, variant=variant) is out
    agrees(out, exact, magnitude, rows)
    assert torch.equal(out, input_gradient(back, dy, variant=variant))
    agrees(input_gradient(weight, dy, variant=variant), exact, magnitude, rows)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.integers(1, 4),
    size=SIZES,
    window=WINDOWS,
    rows=st.integers(1, 20),
    height=st.sampled_from([0, 1, 4]),
    kind=st.sampled_from(sorted(UNITS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_convolutions(
    variant: str,
    channels: int,
    size: tuple[int, int],
    window: Window,
    rows: int,
    height: int,
    kind: str,
    seed: int,
) -> None:
    weight = made(rows, channels * window.kernel[0] * window.kernel[1], 0.4, height, "float32", seed)
    random = torch.Generator().manual_seed(seed)
    dy = torch.randn(rows, *window.out(*size), generator=random).to(getattr(torch, kind))
    dx = input_gradient(weight, dy, window=window, size=size, variant=variant)
    exact, magnitude = torch.zeros(2, channels, *size).double()
    if dy.numel():
        matrix = torch.from_numpy(weight.to_dense()).double().reshape(rows, channels, *window.kernel)
        exact = of_convolution(matrix, dy.double(), window, exact)
        magnitude = of_convolution(matrix.abs(), dy.double().abs(), window, magnitude)
    agrees(dx, exact, magnitude, rows * window.kernel[0] * window.kernel[1])


def of_convolution(matrix: Tensor, dy: Tensor, window: Window, x: Tensor) -> Tensor:
    """The gradient of x by torch."""
    x = x.clone().requires_grad_()
    conv2d(x[None], matrix, None, window.stride, window.padding, window.dilation)[0].backward(dy)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad


def test_only_the_taps_that_count_are_multiplied() -> None:
    weight, window = Weight.dense(np.ones((8, 4), np.float32)), Window((1, 1), (2, 2))
    assert [part.phase for part in weight.transposed(window).parts] == [(0, 0)]
    wide = Weight.dense(np.ones((8, 4 * 9), np.float32)).transposed(Window((3, 3), (2, 2), (1, 1)))
    assert sorted(part.weight.cols // 8 for part in wide.parts) == [1, 2, 2, 4]
    assert sum(int((part.order >= 0).sum()) for part in wide.parts) == 8 * 4 * 9


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("height", [0, 1, 4])
def test_new_values_take_their_places(kind: Any, height: int) -> None:
    weight, window = made(6, 18, 0.5, height, kind), Window((3, 3), (2, 1), (1, 1))
    before, values = weight.to_dense(), torch.randn(weight.values.shape)
    wanted = dense_of(weight, values).numpy()
    other = weight.with_values(values)
    assert other.type == kind
    off = np.abs(values.numpy()).max() / 254 if kind == "int8" else UNITS[kind] * np.abs(wanted)
    assert np.all(np.abs(other.to_dense() - wanted) <= off * (1 + 1e-5))
    assert np.array_equal(weight.to_dense(), before)
    with pytest.raises(ValueError, match="read-only"):
        other.values[0] = 0
    back = weight.transposed(window)
    follows, made_anew = back.with_values(values), other.transposed(window)
    dy, size = torch.randn(6, *window.out(5, 7)), (5, 7)
    if kind == "int8":  # the transpose is float32: these values as they are
        made_anew = Weight.sparse(wanted).transposed(window)
    assert torch.allclose(input_gradient(follows, dy, size=size), input_gradient(made_anew, dy, size=size), atol=1e-5)


class Product(torch.autograd.Function):
    """``matmul`` of images [batch, ...] by the values of a weight, with the gradients of this library."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor, x: Tensor, layer: Layer, variant: str | None) -> Tensor:
        ctx.layer, ctx.variant = layer, variant
        layer.set(values)
        ctx.save_for_backward(x)
        return torch.stack([matmul(layer.weight, one, window=layer.window, bias=bias, variant=variant) for one in x])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        layer, (x,), dy = ctx.layer, ctx.saved_tensors, dy.contiguous()
        values, bias = torch.zeros(layer.weight.values.shape), torch.zeros(layer.weight.rows)
        for one, gradient in zip(x, dy, strict=True):
            weight_gradient(layer.weight, gradient, one, window=layer.window, out=values, bias=bias, accumulate=True,
                            variant=ctx.variant if ctx.variant in GRADIENTS else None)  # fmt: skip
        size = None if layer.window is None else x.shape[2:]
        dx = torch.stack([input_gradient(layer.back, gradient, size=size, variant=ctx.variant) for gradient in dy])
        return values, bias, dx, None, None


class Layer:
    """A weight, its transpose and, between steps, values in fp32 that both follow."""

    def __init__(self, weight: Weight, window: Window | None = None) -> None:
        self.weight, self.window = weight, window
        self.back: Transposed = weight.transposed(window)
        band, column = weight.places()
        dense = np.zeros((weight.bands * weight.height, weight.cols), np.float32)
        dense[: weight.rows] = weight.to_dense()
        start = dense[band[:, None] * weight.height + np.arange(weight.height), column[:, None]]
        self.values = torch.from_numpy(start).requires_grad_()
        self.bias = torch.zeros(weight.rows, requires_grad=True)

    def set(self, values: Tensor) -> None:
        self.weight, self.back = self.weight.with_values(values), self.back.with_values(values)

    def __call__(self, x: Tensor, variant: str | None = None) -> Tensor:
        result: Tensor = Product.apply(self.values, self.bias, x, self, variant)  # type: ignore[no-untyped-call]
        return result

    def exact(self, values: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        """By torch, in fp64."""
        matrix = dense_of(self.weight, values)
        if self.window is None:
            return matrix @ x + bias[:, None]
        w, taps = self.window, (x.shape[1], *self.window.kernel)
        return conv2d(x, matrix.reshape(-1, *taps), bias, w.stride, w.padding, w.dilation)


@pytest.mark.parametrize("kind", sorted(UNITS))
@pytest.mark.parametrize("height", [0, 1, 4])
@pytest.mark.parametrize("window", [None, Window((3, 3), (2, 2), (1, 1)), Window((3, 2), (1, 1), (0, 1), (2, 1))])
def test_gradients_are_those_of_autograd(variant: str, kind: Any, height: int, window: Window | None) -> None:
    torch.manual_seed(0)
    layer = Layer(made(10, 36, 0.4, height, kind), window)
    shape = (3, 36, 50) if window is None else (3, 36 // (window.kernel[0] * window.kernel[1]), 9, 13)
    x = torch.randn(shape).to(getattr(torch, kind)).requires_grad_()
    y = layer(x, variant)
    dy = torch.randn_like(y)
    y.backward(dy)  # type: ignore[no-untyped-call]
    inputs = [each.detach().double().requires_grad_() for each in (layer.values, layer.bias, x)]
    exact = layer.exact(*inputs)
    exact.backward(dy.double())  # type: ignore[no-untyped-call]
    magnitudes = [each.detach().double().abs().requires_grad_() for each in (layer.values, layer.bias, x)]
    layer.exact(*magnitudes).backward(dy.double().abs())  # type: ignore[no-untyped-call]
    # The most products in any of the sums.
    terms = max(dy[:, 0].numel(), 10 * 36)
    for got, one, much in zip((layer.values, layer.bias, x), inputs, magnitudes, strict=True):
        assert got.grad is not None and one.grad is not None and much.grad is not None
        assert got.grad.dtype == got.dtype
        close(got.grad, one.grad, (terms + 1) * EPSILON * much.grad)


def network(kind: Any) -> list[Layer]:
    """A sparse convolution, a strided one in blocks, and a dense classifier; each at a usual scale."""
    windows = [Window((3, 3), (1, 1), (1, 1)), Window((3, 3), (2, 2), (1, 1)), None]
    weights = [made(8, 9, 0.7, 1, kind), made(8, 72, 0.5, 4, kind, 1), made(4, 8, 1.0, 0, kind, 2)]
    layers = [Layer(weight, window) for weight, window in zip(weights, windows, strict=True)]
    with torch.no_grad():
        for layer in layers:
            layer.values *= 2 / layer.weight.cols**0.5
    return layers


def quarters(random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images with a bright quarter, and which it is."""
    labels = torch.randint(4, (32,), generator=random)
    x = torch.randn(32, 1, 8, 8, generator=random) * 0.5
    for image, label in zip(x, labels, strict=True):
        image[0, label // 2 * 4 :, label % 2 * 4 :][:4, :4] += 1
    return x, labels


def train(layers: list[Any], parameters: list[Tensor], type_: torch.dtype) -> list[float]:
    """Losses of some steps; in float16 gradients would vanish without the scale of the loss, which is divided out."""
    optimizer, scale, losses, random = torch.optim.Adam(parameters, lr=0.02), 1024.0, [], torch.Generator()
    random.manual_seed(0)
    for _ in range(40):
        z, labels = quarters(random)
        z = z.to(type_)
        for layer in layers[:2]:
            z = torch.relu(layer(z))
        z = layers[2](z.mean(dim=(2, 3)).T.contiguous()[None])  # all images in one product
        loss = torch.nn.functional.cross_entropy(z[0].T.double(), labels)
        optimizer.zero_grad()
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad /= scale
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("kind", "off"), [("float32", 1e-3), ("float16", 0.05), ("bfloat16", 0.1)])
def test_a_network_learns_as_with_torch(kind: Any, off: float) -> None:
    layers = network(kind)
    copies = [[each.detach().double().requires_grad_() for each in (layer.values, layer.bias)] for layer in layers]
    exact = [partial(layer.exact, *held) for layer, held in zip(layers, copies, strict=True)]
    reference = train(exact, [each for held in copies for each in held], torch.float64)
    losses = train(layers, [each for layer in layers for each in (layer.values, layer.bias)], getattr(torch, kind))
    assert reference[-1] < 0.6 * reference[0]
    assert np.abs(np.subtract(losses, reference)).max() < off


@pytest.mark.skipif(not kernels.status().library, reason="needs the C library")
def test_threads_share_the_work(variant: str) -> None:
    pool, window = Pool(2), Window((3, 3), (2, 2), (1, 1))
    weight, dy = made(16, 36, 0.5, 4, "float32"), torch.randn(16, 10, 10)
    alone = input_gradient(weight, dy, window=window, size=(20, 20), variant=variant)
    assert torch.allclose(input_gradient(weight, dy, window=window, size=(20, 20), pool=pool, variant=variant), alone)
    pool.close()


WEIGHT = Weight.sparse(np.ones((3, 8), np.float32))
DY = np.ones((3, 4, 5), np.float32)
WINDOW = Window((2, 2))


@pytest.mark.parametrize(
    ("place", "fact", "arguments"),
    [
        ("weight", "ndarray", {"weight": np.ones((3, 8))}),
        ("dy", "ask for", {"dy": DY[:2]}),
        ("dy", "ask for", {"size": (5, 7)}),
        ("dy", "3 dimensions", {"window": None}),
        ("dy", "ask for", {"window": None, "dy": DY[:2, 0]}),
        ("window", "8 columns", {"window": Window((3, 1))}),
        ("window", "was transposed for", {"weight": WEIGHT.transposed(WINDOW), "window": Window((1, 1))}),
        ("size", "does not tell", {"size": None}),
        ("out", "ask for", {"out": np.empty((2, 5, 5), np.float32)}),
        ("out", "float16", {"out": np.empty((2, 5, 6), np.float16)}),
        ("out", "overlaps dy", {"out": DY.reshape(-1)[:60].reshape(2, 5, 6)}),
        ("variant", "no variant", {"variant": "sse9"}),
    ],
)
def test_refused(place: str, fact: str, arguments: dict[str, Any]) -> None:
    good: dict[str, Any] = {"weight": WEIGHT, "dy": DY, "window": WINDOW, "size": (5, 6)}
    with pytest.raises(kernels.KernelError) as caught:
        input_gradient(**good | arguments)
    assert caught.value.place == place
    assert fact in caught.value.fact
    assert caught.value.remedy in str(caught.value)


@pytest.mark.parametrize("values", [np.ones((23, 1), np.float32), np.ones((24, 1), np.float16), [1.0]])
def test_other_values_are_refused(values: Any) -> None:
    for held in (WEIGHT, WEIGHT.transposed(WINDOW)):
        with pytest.raises(kernels.KernelError) as caught:
            held.with_values(values)
        assert caught.value.place == "values"
