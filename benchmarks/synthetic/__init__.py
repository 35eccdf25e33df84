"""Checkpoints of random weights in the published layouts and sizes, and small ones for tests.

`checkpoints.write_model` writes any of them by name. Real weights are not needed to test an export
or to measure one: the same files, names, shapes, types and shards are.
"""
