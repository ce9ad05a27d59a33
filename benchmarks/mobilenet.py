"""MobileNetV1 at 224 x 224, batch 1, from image to classes: the kernels in a row, beside ONNX Runtime and OpenVINO.

    python benchmarks/mobilenet.py                                             # a minute
    python benchmarks/mobilenet.py --sparsity 0.8 --threads 2 --layers

The weights of the pointwise layers and the classifier have zeros at random, in single places or in blocks of four rows;
ours skip them, the peers do not. Weights are random, batch norms folded away, activations ReLU6. Every network is
compared with fp64 before it is timed, then all take turns, in a new order each round.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from page import put, table

from coppice.kernels import Pool, Weight, Window, average_pool, depthwise, fastest, isa, matmul
from coppice.kernels.bench.machine import pinned, this_machine, versions
from coppice.kernels.bench.measure import turns
from coppice.kernels.bench.runtimes import onnxruntime_call, openvino_call
from coppice.kernels.bench.statistics import differs, paired

Array = NDArray[np.float32]
SIZE, CLASSES = 224, 1000
#: Channels and stride of each pair of a depthwise and a pointwise layer (Howard et al. 2017, table 1).
PAIRS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip


@dataclass(frozen=True)
class Parameters:
    """Of one network: the stem [32, 27], and for each pair a depthwise and a pointwise weight; biases by layer."""

    stem: Array
    depthwise: list[Array]
    pointwise: list[Array]
    classifier: Array
    biases: dict[str, Array]


def parameters(sparsity: float, height: int) -> Parameters:
    """Scaled so that activations stay where ReLU6 works; a share ``sparsity`` of blocks of ``height`` rows is zero."""
    random = np.random.default_rng(0)

    def normal(*shape: int, inputs: float) -> Array:
        return (random.standard_normal(shape) * np.sqrt(2 / inputs)).astype(np.float32)

    def sparse(rows: int, cols: int) -> Array:
        kept = np.repeat(random.random((-(-rows // height), cols)) >= sparsity, height, axis=0)[:rows]
        values: Array = normal(rows, cols, inputs=cols * (1 - sparsity)) * kept
        return values

    channels, spatial, pointwise, biases = 32, [], [], {"stem": normal(32, inputs=20)}
    for number, (width, _) in enumerate(PAIRS):
        spatial.append(normal(channels, 3, 3, inputs=9))
        pointwise.append(sparse(width, channels))
        biases |= {f"depthwise {number}": normal(channels, inputs=20), f"pointwise {number}": normal(width, inputs=20)}
        channels = width
    biases["classifier"] = normal(CLASSES, inputs=20)
    return Parameters(normal(32, 27, inputs=27), spatial, pointwise, sparse(CLASSES, channels), biases)


def exact(held: Parameters, image: Array) -> NDArray[np.float64]:
    """The classes in fp64."""
    with torch.inference_mode():
        result: NDArray[np.float64] = _torch(held, torch.from_numpy(image)[None].double())[0].numpy()
    return result


def _torch(held: Parameters, x: torch.Tensor) -> torch.Tensor:
    def tensor(array: Array, *shape: int) -> torch.Tensor:
        return torch.from_numpy(array).to(x.dtype).reshape(shape or array.shape)

    x = F.relu6(F.conv2d(x, tensor(held.stem, 32, 3, 3, 3), tensor(held.biases["stem"]), 2, 1))
    for number, (_, stride) in enumerate(PAIRS):
        spatial, pointwise = held.depthwise[number], held.pointwise[number]
        biases = (tensor(held.biases[f"{kind} {number}"]) for kind in ("depthwise", "pointwise"))
        x = F.relu6(F.conv2d(x, tensor(spatial)[:, None], next(biases), stride, 1, groups=len(spatial)))
        x = F.relu6(F.conv2d(x, tensor(pointwise)[:, :, None, None], next(biases)))
    return F.linear(x.mean((2, 3)), tensor(held.classifier), tensor(held.biases["classifier"]))


@dataclass
class Network:
    """Ours: bound calls over buffers of its own."""

    calls: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    layouts: dict[str, str] = field(default_factory=dict)
    classes: Any = None

    def __call__(self) -> None:
        for _, call in self.calls:
            call()

    def result(self) -> NDArray[Any]:
        return self.classes[:, 0].double().numpy()


def network(held: Parameters, image: Array, kind: Any, arithmetic: str, pool: Pool | None) -> Network:
    """Activations and weights of type ``kind``; each pointwise layer in the layout that is the fastest here."""
    net, dtype = Network(), getattr(torch, kind)
    memory = [torch.empty(64 * (SIZE // 2) ** 2, dtype=dtype) for _ in range(2)]  # results take turns in it

    def add(name: str, primitive: Any, first: Any, x: torch.Tensor, *shape: int, **named: Any) -> torch.Tensor:
        memory.reverse()
        out = memory[0][: prod(shape)].view(shape)
        if name in held.biases:
            named |= {"bias": held.biases[name]}
        arguments = (x,) if first is None else (first, x)
        net.calls.append((name, primitive.bind(*arguments, out=out, pool=pool, **named)))
        return out

    def quickest(name: str, weight: Array, x: torch.Tensor) -> Weight:
        choice = fastest(weight, x, type=kind, arithmetic=arithmetic, pool=pool, seconds=0.3)
        net.layouts[name] = choice.layout
        return choice.weight

    x = torch.from_numpy(image).to(dtype)
    size, window = SIZE // 2, Window((3, 3), (2, 2), padding=(1, 1))
    stem = Weight.dense(held.stem, type=kind)
    x = add("stem", matmul, stem, x, 32, size, size, window=window, activation="relu6", arithmetic=arithmetic)
    for number, (width, stride) in enumerate(PAIRS):
        spatial, name = held.depthwise[number], f"pointwise {number}"
        size //= stride
        shape, window = (len(spatial), size, size), Window((3, 3), (stride, stride), padding=(1, 1))
        x = add(f"depthwise {number}", depthwise, spatial, x, *shape, window=window, activation="relu6")
        x = x.view(len(spatial), size * size)
        weight = quickest(name, held.pointwise[number], x)
        x = add(name, matmul, weight, x, width, size * size, activation="relu6", arithmetic=arithmetic)
        x = x.view(width, size, size)
    x = add("pool", average_pool, None, x, len(x), 1, 1).view(-1, 1)
    net.classes = add("classifier", matmul, quickest("classifier", held.classifier, x), x, CLASSES, 1)
    return net


# ---- peers ---------------------------------------------------------------------------------------------------------


def model(held: Parameters) -> bytes:
    """The network as ONNX, [1, 3, 224, 224] to [1, 1000]."""
    from onnx import helper, numpy_helper

    constants: dict[str, Any] = {"low": np.float32(0), "high": np.float32(6)}
    nodes, last = [], "x"

    def convolution(name: str, weight: Array, stride: int, groups: int = 1) -> None:
        nonlocal last
        constants[f"{name} weight"], constants[f"{name} bias"] = weight, held.biases[name]
        nodes.append(helper.make_node(
            "Conv", [last, f"{name} weight", f"{name} bias"], [f"{name} sum"], group=groups, strides=[stride] * 2,
            kernel_shape=weight.shape[2:], pads=[weight.shape[2] // 2] * 4,
        ))  # fmt: skip
        nodes.append(helper.make_node("Clip", [f"{name} sum", "low", "high"], [name]))
        last = name

    convolution("stem", held.stem.reshape(32, 3, 3, 3), 2)
    for number, (_, stride) in enumerate(PAIRS):
        spatial = held.depthwise[number]
        convolution(f"depthwise {number}", spatial[:, None], stride, len(spatial))
        convolution(f"pointwise {number}", held.pointwise[number][:, :, None, None], 1)
    constants |= {"classifier": held.classifier, "bias": held.biases["classifier"]}
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "classifier", "bias"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mobilenet_v1",
        [helper.make_tensor_value_info("x", 1, (1, 3, SIZE, SIZE))],
        [helper.make_tensor_value_info("y", 1, (1, CLASSES))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def peers(held: Parameters, image: Array, threads: int) -> dict[str, tuple[Callable[[], object], Callable[[], Any]]]:
    """Call and result of those that are installed."""
    batch, found = image[None], {}
    if find_spec("onnxruntime"):
        call, value = onnxruntime_call(model(held), batch, np.float32, (1, CLASSES), threads)
        found["onnxruntime fp32"] = call, lambda: value.numpy()[0]
    if find_spec("openvino"):
        for kind, hint in (("fp32", "f32"), ("bf16", "bf16")):
            call, out = openvino_call(model(held), batch, hint, threads)
            found[f"openvino {kind}"] = call, partial(np.ravel, out)
    tensor = torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)
    results = [torch.empty(0)]

    def run() -> None:
        with torch.inference_mode():
            results[0] = _torch(held, tensor)

    found["torch fp32"] = run, lambda: results[0][0].numpy()
    return found


# ---- measuring -----------------------------------------------------------------------------------------------------

KINDS = {"fp32": ("float32", "float32"), "fp16": ("float16", "float32"), "bf16": ("bfloat16", "bfloat16")}
#: How far the classes may be off, relative to the greatest, by what is computed in.
ERRORS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1.5e-1}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--layers", action="store_true", help="our time by layer")
    parser.add_argument("--docs", type=Path, help="write the tables between the marks of this page")
    chosen = parser.parse_args(arguments)
    image = np.random.default_rng(1).standard_normal((3, SIZE, SIZE)).astype(np.float32)
    pool = Pool(chosen.threads) if chosen.threads > 1 else None
    with pinned(chosen.threads):
        rows: dict[str, tuple[Callable[[], object], Callable[[], Any]]] = {}
        nets: dict[str, Network] = {}
        for height in (1, 4):
            held = parameters(chosen.sparsity, height)
            wanted = exact(held, image)
            fresh = peers(held, image, chosen.threads) if height == 1 else {}
            for short, (kind, arithmetic) in KINDS.items():
                net = nets[f"coppice {short}, {height}x1"] = network(held, image, kind, arithmetic, pool)
                fresh[f"coppice {short}, {height}x1"] = net, net.result
            for name, (call, result) in fresh.items():
                call()
                error = np.abs(result() - wanted).max() / np.abs(wanted).max()
                limit = ERRORS[name.split()[1].rstrip(",")]
                if not error <= limit:
                    print(f"{name}: off by {error:.2g} of the greatest class, more than {limit}", file=sys.stderr)
                    return 1
            rows |= fresh
        times = turns([call for call, _ in rows.values()], chosen.repetitions, chosen.threads)
        text = report(chosen, dict(zip(rows, times, strict=True)), nets)
    if pool is not None:
        pool.close()
    print(text)
    if chosen.docs is not None:
        put(chosen.docs, "mobilenet", text)
    return 0


def report(chosen: argparse.Namespace, times: dict[str, Array], nets: dict[str, Network]) -> str:
    """The table of all networks, and where the time of ours goes."""
    baseline = next(iter(times))
    rows = []
    for name, held in times.items():
        low, median, high = np.percentile(1e3 * held, (10, 50, 90))
        ratios = times[baseline] / held
        p10, middle, p90 = np.percentile(ratios, (10, 50, 90))
        sign = "" if name == baseline or differs(float(middle), paired(ratios)) else "= "
        rows.append([name, f"{median:.2f} ({low:.2f}-{high:.2f})", f"{sign}{middle:.2f} ({p10:.2f}-{p90:.2f})"])
    taken = {name: layers(net) for name, net in nets.items()}
    kinds = dict.fromkeys(layer.split()[0] for layer, _ in next(iter(nets.values())).calls)
    parts = [
        [name, *(f"{sum(us for layer, us in held if layer.split()[0] == kind):.0f}" for kind in kinds)]
        for name, held in taken.items()
    ]
    threads = f"{chosen.threads} thread{'s' * (chosen.threads > 1)}"
    text = [
        f"{this_machine().cpu}, kernels up to {isa()}. " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ".",
        f"{chosen.sparsity:.0%} zeros, {threads}, {chosen.repetitions} rounds, medians (10th-90th):\n",
        table(["network", "ms", f"times as fast as {baseline}"], rows),
        table(["us of all layers of a kind", *kinds], parts),
    ]
    if chosen.layers:
        for name, held in taken.items():
            lines = (f"{us:8.1f}  {layer} {nets[name].layouts.get(layer, '')}" for layer, us in held)
            text += [f"{name}\n", *lines, ""]
    return "\n".join(text)


def layers(net: Network) -> list[tuple[str, float]]:
    """Each layer and its microseconds, in the network."""
    taken = np.empty((30, len(net.calls)))
    for round_ in taken:
        for index, (_, call) in enumerate(net.calls):
            begin = time.perf_counter()
            call()
            round_[index] = time.perf_counter() - begin
    return [(layer, float(us)) for (layer, _), us in zip(net.calls, 1e6 * np.median(taken, axis=0), strict=True)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
