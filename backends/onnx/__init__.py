"""From a graph to a standard ONNX model."""
