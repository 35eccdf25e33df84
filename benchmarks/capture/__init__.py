"""benchmarks/capture."""
