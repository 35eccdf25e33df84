"""Rivals, one a file, each with its source: what a scenario's ratios are against.

None is timed before its result was held against ours.
"""
