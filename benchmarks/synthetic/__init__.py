"""benchmarks/synthetic."""
