"""What capturing attention costs, in PyTorch and in ONNX."""
