"""Ask for several things at once, and give each pixel the label that fits it best.

python examples/python/label_map.py examples/street.png "the green van" "the yellow cat"
"""

import sys

import numpy as np
from PIL import Image

from rism import Segmenter

path, *expressions = sys.argv[1:]
segmenter = Segmenter.from_bundle()
state = segmenter.set_image(path)  # encoded once, for any number of calls
results = segmenter.segment(state, expressions)  # one batch

# A score says how much nearer a pixel is to the expression than to the rest of the image.
scores = np.stack([np.where(result.mask, result.scores_hw, -np.inf) for result in results])
labels = np.where(np.isfinite(scores).any(axis=0), scores.argmax(axis=0) + 1, 0)
Image.fromarray(labels.astype(np.uint8)).save("labels.png")
for label, result in enumerate(results, start=1):
    print(f"{label} {result.expression}: {np.count_nonzero(labels == label)} pixels")
