"""Small pictures of found and true masks, for a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image as Pictures

from rism.evaluation.samples import Image, Mask
from rism.runtime.errors import InputError

__all__ = ["FALSE_RGB", "FOUND_RGB", "MISSED_RGB", "data_uri", "drawn"]

# Told apart by colour-blind eyes (Okabe and Ito).
FOUND_RGB = (0, 158, 115)
MISSED_RGB = (0, 114, 178)
FALSE_RGB = (213, 94, 0)
_SIDE = 360
_OPACITY = 0.6
_COLOUR = 0.2


def drawn(image_hwc: Image, found_hw: Mask, true_hw: Mask, *, side: int = _SIDE) -> Image:
    """Tint what was found rightly, what was missed and what was found wrongly.

    Args:
        image_hwc: (H, W, 3) uint8.
        found_hw: (H, W) bool.
        true_hw: (H, W) bool.
        side: the longer side of what is returned; smaller pictures keep their size.

    Raises:
        InputError: picture and masks are of different sizes.
    """
    if not image_hwc.shape[:2] == found_hw.shape == true_hw.shape:
        raise InputError("the picture and its masks are of different sizes")
    scale = min(1.0, side / max(found_hw.shape))
    size_wh = (max(1, round(found_hw.shape[1] * scale)), max(1, round(found_hw.shape[0] * scale)))
    small = np.asarray(
        Pictures.fromarray(image_hwc).resize(size_wh, Pictures.Resampling.BOX), np.float32
    )
    # Nearly grey, so that the tints are the only colours.
    grey_hw1 = small.mean(axis=2, keepdims=True)
    small = grey_hw1 + _COLOUR * (small - grey_hw1)
    for mask_hw, tint in (
        (found_hw & true_hw, FOUND_RGB),
        (true_hw & ~found_hw, MISSED_RGB),
        (found_hw & ~true_hw, FALSE_RGB),
    ):
        grey = Pictures.fromarray(mask_hw.astype(np.uint8) * np.uint8(255))
        share = np.asarray(grey.resize(size_wh, Pictures.Resampling.BOX), np.float32) / 255
        share *= _OPACITY
        small += share[..., None] * (np.array(tint, np.float32) - small)
    tinted: Image = np.rint(small).clip(0, 255).astype(np.uint8)
    return tinted


def data_uri(image_hwc: Image) -> str:
    """Encode a picture so that a page can hold it: JPEG in base 64."""
    data = io.BytesIO()
    Pictures.fromarray(image_hwc).save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
