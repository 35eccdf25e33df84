"""Segment one image, and save the mask and an overlay.

python examples/python/segment_image.py examples/street.png "the green van"
"""

import sys

import numpy as np
from PIL import Image

from rism import Segmenter
from rism.runtime import load_image

path, expression = sys.argv[1:]
image = load_image(path)  # (height, width, 3) uint8, RGB
segmenter = Segmenter.from_bundle()  # the built-in model; pass the folder of an exported one
result = segmenter.segment(image, expression)
if result.reason is not None:
    sys.exit(f"no mask: {result.reason}")
print(f"box {result.box_xyxy}, {result.area_share:.1%} of the image, {result.provider}")
if result.confidence is not None:
    print(f"confidence {result.confidence:.2f}")

Image.fromarray(result.mask).save("mask.png")
overlay = image.copy()
overlay[result.mask] = (overlay[result.mask] + np.array([255, 0, 0])) // 2
Image.fromarray(overlay).save("overlay.png")
