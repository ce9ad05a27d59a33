"""Peers that may be installed: ONNX Runtime and OpenVINO, each on a model of a single node."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from coppice.kernels._weight import Type
from coppice.kernels.bench.contenders import Contender, Prepared, Setting
from coppice.kernels.bench.problem import LEAST, SHORT, Problem

#: Of the models; both runtimes know them.
OPSET, IR_VERSION = 17, 9


def runtimes() -> list[Contender]:
    """Rows of those that are installed."""
    rows = []
    if find_spec("onnxruntime") is not None:
        rows += [
            Contender("onnxruntime/dense/fp32", _onnxruntime, dense=True),
            Contender("onnxruntime/dense/int8", _onnxruntime_int8, "int8", "int8", dense=True),
        ]
    if find_spec("openvino") is not None:
        kinds: tuple[Type, ...] = ("float32", "bfloat16", "int8")
        rows += [
            Contender(f"openvino/dense/{SHORT[kind]}", partial(_openvino, kind), kind, kind, dense=True)
            for kind in kinds
        ]
    return rows


def absent() -> list[str]:
    """Those that are not."""
    return [name for name in ("onnxruntime", "openvino") if find_spec(name) is None]


# ---- the layer as a model ------------------------------------------------------------------------------------------


def _is_linear(problem: Problem) -> bool:
    return problem.shape.convolution is None


def _laid_out(problem: Problem, matrix: Any, x: Any) -> tuple[Any, Any]:
    """Weight and activations as the node wants them: tokens as rows of a linear layer, an image of a convolution."""
    held = problem.shape.convolution
    if held is None:
        return np.ascontiguousarray(matrix.T), np.ascontiguousarray(x.T)
    image = x.reshape(1, -1, *held.size)
    return matrix.reshape(problem.shape.rows, image.shape[1], *held.kernel), image


def _rows_first(problem: Problem, result: Any) -> Any:
    """[rows, pixels] of what the node gives."""
    return result.T if _is_linear(problem) else result[0].reshape(problem.shape.rows, -1)


def _out_shape(problem: Problem) -> tuple[int, ...]:
    held = problem.shape.convolution
    return (problem.shape.pixels, problem.shape.rows) if held is None else (1, problem.shape.rows, *held.out)


def _attributes(problem: Problem) -> dict[str, Any]:
    held = problem.shape.convolution
    if held is None:
        return {}
    return {"kernel_shape": held.kernel, "strides": (held.stride, held.stride), "pads": held.padding * 2}


def _model(problem: Problem, nodes: list[Any], constants: dict[str, Any], x: Any, out: Any) -> bytes:
    """A serialised model from ``x`` to ``y``."""
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(out)), _out_shape(problem))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def _float_model(problem: Problem) -> tuple[bytes, Any, Any]:
    """Model, weight and input in fp32."""
    from onnx import helper

    weight, x = _laid_out(problem, problem.matrix(1), problem.x)
    operator = "MatMul" if _is_linear(problem) else "Conv"
    node = helper.make_node(operator, ["x", "w"], ["y"], **_attributes(problem))
    return _model(problem, [node], {"w": weight}, x, np.float32), weight, x


# ---- ONNX Runtime --------------------------------------------------------------------------------------------------


def onnxruntime_call(model: bytes, x: Any, out: Any, shape: tuple[int, ...], threads: int) -> tuple[Any, Any]:
    """A call from ``x`` to ``y`` without copies, and the value that it writes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    value = onnxruntime.OrtValue.ortvalue_from_numpy(x)
    result = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, out)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", value)
    binding.bind_ortvalue_output("y", result)
    return partial(session.run_with_iobinding, binding), result


def _onnxruntime(problem: Problem, setting: Setting) -> Prepared:
    model, weight, x = _float_model(problem)
    call, out = onnxruntime_call(model, x, np.float32, _out_shape(problem), setting.threads)
    return Prepared(call, lambda: _rows_first(problem, out.numpy()), weight.nbytes + x.nbytes + out.numpy().nbytes)


def _onnxruntime_int8(problem: Problem, setting: Setting) -> Prepared:
    """int8 weights by uint8 activations, quantised beforehand, without the scales afterwards.

    A product stays int32. A convolution becomes uint8 again: the one that stays int32 takes ten times as long.
    """
    from onnx import helper

    matrix, scales, quantised, scale = problem.quantised()
    weight, x = _laid_out(problem, matrix, (quantised.astype(np.int16) + 128).astype(np.uint8))
    constants = {"w": weight, "zero": np.array(128, np.uint8)}
    if _is_linear(problem):
        node = helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])
        model = _model(problem, [node], constants, x, np.int32)
        call, out = onnxruntime_call(model, x, np.int32, _out_shape(problem), setting.threads)
        units = scales[:, None].astype(float) * scale
        traffic = weight.nbytes + x.nbytes + out.numpy().nbytes
        return Prepared(call, lambda: _rows_first(problem, out.numpy()) * units, traffic)
    unit = max(LEAST, float(np.abs(problem.exact(1)[0]).max(initial=0))) / 127
    for name, value in {"scale": scale, "unit": unit}.items():
        constants[name] = np.array(value, np.float32)
    constants |= {"scales": scales, "zeros": np.zeros(len(scales), np.int8)}
    inputs = ["x", "scale", "zero", "w", "scales", "zeros", "unit", "zero"]
    node = helper.make_node("QLinearConv", inputs, ["y"], **_attributes(problem))
    model = _model(problem, [node], constants, x, np.uint8)
    call, out = onnxruntime_call(model, x, np.uint8, _out_shape(problem), setting.threads)
    traffic = weight.nbytes + x.nbytes + out.numpy().nbytes
    return Prepared(call, lambda: (_rows_first(problem, out.numpy()) - 128.0) * unit, traffic, rounding=unit / 2)


# ---- OpenVINO ------------------------------------------------------------------------------------------------------


def openvino_call(model: bytes, x: Any, precision: str, threads: int) -> tuple[Any, Any]:
    """A call from ``x`` without copies, and the array that it writes."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(core.read_model(model, b""), "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    request.infer()

    def call(_alive: object = x) -> None:
        request.infer()

    return call, request.get_output_tensor().data


def _openvino(kind: Type, problem: Problem, setting: Setting) -> Prepared:
    """In and out are fp32; bf16 and int8 are what it computes in, and int8 quantises the activations on the way."""
    model, weight, x = _quantised_model(problem) if kind == "int8" else _float_model(problem)
    call, out = openvino_call(model, x, "bf16" if kind == "bfloat16" else "f32", setting.threads)
    traffic = weight.nbytes // (2 if kind == "bfloat16" else 1) + x.nbytes + out.nbytes
    return Prepared(call, lambda: _rows_first(problem, out), traffic)


def _quantised_model(problem: Problem) -> tuple[bytes, Any, Any]:
    """Between QuantizeLinear and DequantizeLinear, which the runtime folds into an int8 kernel."""
    from onnx import helper

    matrix, scales, _, scale = problem.quantised()
    weight, x = _laid_out(problem, matrix, problem.x)
    linear = _is_linear(problem)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["v"], axis=1 if linear else 0),
        helper.make_node("MatMul" if linear else "Conv", ["d", "v"], ["y"], **_attributes(problem)),
    ]
    constants = {
        "w": weight, "scales": scales, "zeros": np.zeros(len(scales), np.int8),
        "scale": np.array(scale, np.float32), "zero": np.array(0, np.int8),
    }  # fmt: skip
    return _model(problem, nodes, constants, x, np.float32), weight, x
