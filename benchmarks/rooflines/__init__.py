"""Lower bounds from datasheets: the least time of each stage and of the probe on each card.

`python -m benchmarks.rooflines` prints the tables of docs/performance.md and docs/probe.md.
"""
