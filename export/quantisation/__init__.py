"""Weights in 4 and 8 bits, in blocks along a row: how they are rounded, and where.

`block_rounding` rounds rows of a weight, `layer_choice` says which layers of a module are rounded.
The graphs that compute with such weights are made by `rism.export.graph.block_products`.
"""
