"""Masks that are hard to write down, (240, 320) bool."""

import numpy as np
from numpy.typing import NDArray

from rism.runtime.image.geometry import Plan
from rism.runtime.result.segmentation import Segmentation

Mask = NDArray[np.bool_]


def _masks() -> dict[str, Mask]:
    y, x = np.mgrid[:240, :320]
    disc = (x - 140) ** 2 + (y - 120) ** 2 < 90**2
    box = (x >= 40) & (x <= 260) & (y >= 50) & (y <= 180)
    noise = np.random.default_rng(0).random((30, 40)).repeat(8, 0).repeat(8, 1) > 0.5
    return {
        "disc": disc,
        "ring": disc & ((x - 150) ** 2 + (y - 110) ** 2 > 40**2),
        "holes": disc & ~((x % 20 < 6) & (y % 20 < 6)),
        "parts": ((x - 60) ** 2 + (y - 60) ** 2 < 30**2)
        | ((x - 220) ** 2 + (y - 160) ** 2 < 50**2),
        "border": (x < 20) | (y > 200),
        "horizontal": (y == 100) & (x > 30) & (x < 200),
        "vertical": (x == 100) & (y > 30) & (y < 200),
        "diagonal": (x == y) & (x > 20) & (x < 200),
        "frame": box & ((y == 50) | (y == 180) | (x == 40) | (x == 260)),
        "dot": (x == 50) & (y == 60),
        "triangle": (x > 2 * y) & (x < 320 - 2 * y),
        "blocks": noise,
        "everything": np.ones((240, 320), bool),
        "empty": np.zeros((240, 320), bool),
    }


MASKS = _masks()


def iou(one: Mask, other: Mask) -> float:
    """Intersection over union; 1 where both are empty."""
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 1.0


def segmented(mask: Mask, expression: str, confidence: float | None = None) -> Segmentation:
    """The result that has this mask."""
    height, width = mask.shape
    tokens = np.zeros((2, 2), np.float32)
    return Segmentation(
        expression=expression, instruction=f"remove {expression}", mask_hw=mask, score_map=tokens,
        coarse=tokens, refined=tokens, score=0.0, separability=0.0, concentration=0.0,
        agreement=0.0, confidence=confidence, reason=None if mask.any() else "nothing",
        provider="cpu", precision="float32", model="none", timings_ms={},
        plan=Plan((width, height), (width, height), (0, 0, width, height), (2, 2)),
    )  # fmt: skip
