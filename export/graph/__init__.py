"""From modules to ONNX graphs: tracing with captured attention, and passes over the result."""
