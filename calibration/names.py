"""The names that the calibration's options take, written once; only `typing` is imported."""

from typing import Literal, get_args

# How the range of an FP8 activation is chosen: the largest value, a percentile, or the percentile
# that keeps the masks.
ScaleRule = Literal["max", "percentile", "mask"]
SCALE_RULES: tuple[ScaleRule, ...] = get_args(ScaleRule)
