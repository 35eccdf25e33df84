"""Benchmarks: ratios against named baselines, measured in one run. `python -m benchmarks`."""

# Before a module here imports onnxruntime: rism turns its telemetry off.
import rism  # noqa: F401
