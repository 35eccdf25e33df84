"""Small pictures of found and true masks, for a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image as Pictures
from PIL import ImageFilter

from rism.evaluation.datasets.sample import Image, Mask
from rism.runtime.errors import InputError

__all__ = ["FOUND_RGB", "TRUE_RGB", "data_uri", "drawn"]

# Told apart by colour-blind eyes (Okabe and Ito).
FOUND_RGB = (213, 94, 0)
TRUE_RGB = (0, 114, 178)
_SIDE = 360
_OPACITY = 0.35


def drawn(image_hwc: Image, found_hw: Mask, true_hw: Mask, *, side: int = _SIDE) -> Image:
    """Draw the contours of what was found and of what is true, and tint where they differ.

    Where both contours are one, the found one is a line in the middle of the true one.

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
    box = Pictures.Resampling.BOX
    small = np.array(Pictures.fromarray(image_hwc).resize(size_wh, box))
    found, true = (
        Pictures.fromarray(mask_hw.astype(np.uint8) * np.uint8(255)).resize(size_wh, box)
        for mask_hw in (found_hw, true_hw)
    )
    has_found, has_true = np.asarray(found) > 127, np.asarray(true) > 127
    for only, tint in ((has_true & ~has_found, TRUE_RGB), (has_found & ~has_true, FOUND_RGB)):
        mixed = small[only] * (1 - _OPACITY) + np.array(tint, np.float32) * _OPACITY
        small[only] = np.rint(mixed)
    small[_edge(has_found, 2) | _edge(has_true, 3)] = 255  # shows on dark grounds
    small[_edge(has_true, 2)] = TRUE_RGB
    small[_edge(has_found, 1)] = FOUND_RGB
    return small


def _edge(mask_hw: Mask, by: int) -> Mask:
    """Pixels at most `by` from the edge of a mask, on both sides."""
    image = Pictures.fromarray(mask_hw.astype(np.uint8))
    wide, thin = (image.filter(rule(2 * by + 1)) for rule in _FILTERS)
    return np.asarray(wide) > np.asarray(thin)


_FILTERS = (ImageFilter.MaxFilter, ImageFilter.MinFilter)


def data_uri(image_hwc: Image) -> str:
    """Encode a picture so that a page can hold it: JPEG in base 64."""
    data = io.BytesIO()
    Pictures.fromarray(image_hwc).save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
