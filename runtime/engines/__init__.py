"""Running one graph in ONNX Runtime, TensorRT or TensorRT for RTX, and choosing among them."""
