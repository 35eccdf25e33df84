"""Thumbnails of found and true masks for the report."""

import base64
import io

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageFilter

from rism.evaluation.datasets.sample import Image, Mask
from rism.runtime.errors import InputError

# Distinguishable for colour-blind people (Okabe and Ito).
FOUND_RGB = (213, 94, 0)
TRUE_RGB = (0, 114, 178)
_SIDE = 360
_OPACITY = 0.35


def drawn(image_hwc: Image, found_hw: Mask, true_hw: Mask, *, side: int = _SIDE) -> Image:
    """Draw the contours of the found and the true mask, and tint where the masks differ.

    Where both contours coincide, the found one is a line in the middle of the true one.

    The image is (H, W, 3) uint8, masks are (H, W) bool. `side` is the longer side of the result;
    smaller images keep their size.

    Raises:
        InputError: the image and its masks are of different sizes.
    """
    if not image_hwc.shape[:2] == found_hw.shape == true_hw.shape:
        raise InputError("the image and its masks are of different sizes")
    scale = min(1.0, side / max(found_hw.shape))
    width, height = (max(1, round(pixels * scale)) for pixels in found_hw.shape[::-1])
    size_wh, box = (width, height), PillowImage.Resampling.BOX
    small = np.array(PillowImage.fromarray(image_hwc).resize(size_wh, box))
    found, true = (
        PillowImage.fromarray(mask_hw.astype(np.uint8) * np.uint8(255)).resize(size_wh, box)
        for mask_hw in (found_hw, true_hw)
    )
    has_found, has_true = np.asarray(found) > 127, np.asarray(true) > 127
    for only, tint in ((has_true & ~has_found, TRUE_RGB), (has_found & ~has_true, FOUND_RGB)):
        mixed = small[only] * (1 - _OPACITY) + np.array(tint, np.float32) * _OPACITY
        small[only] = np.rint(mixed)
    small[_edge(has_found, 2) | _edge(has_true, 3)] = 255  # visible on dark images
    small[_edge(has_true, 2)] = TRUE_RGB
    small[_edge(has_found, 1)] = FOUND_RGB
    return small


def _edge(mask_hw: Mask, by: int) -> Mask:
    """Return the pixels at most `by` from the edge of a mask, on both sides."""
    image = PillowImage.fromarray(mask_hw.astype(np.uint8))
    dilated = image.filter(ImageFilter.MaxFilter(2 * by + 1))
    eroded = image.filter(ImageFilter.MinFilter(2 * by + 1))
    return np.asarray(dilated) > np.asarray(eroded)


def data_uri(image_hwc: Image) -> str:
    """Encode an image as a data URI: JPEG in base 64."""
    data = io.BytesIO()
    PillowImage.fromarray(image_hwc).save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
