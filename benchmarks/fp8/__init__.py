"""benchmarks/fp8."""
