"""benchmarks/rooflines."""
