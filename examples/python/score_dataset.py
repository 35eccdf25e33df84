"""Score the built-in model on a few drawn scenes, sample by sample.

python examples/python/score_dataset.py 10

`open_dataset` opens RefCOCO, parquet and JSON Lines files in the same form (docs/datasets.md).
"""

import sys

from rism import Segmenter
from rism.evaluation import SceneSet, Sums, overlap

dataset = SceneSet(count=int(sys.argv[1]))
segmenter = Segmenter.from_bundle()
sums, paper = Sums(), Sums()  # rism's defaults, and the published method
for sample in dataset.samples:
    state, true_mask = segmenter.set_image(dataset.image(sample)), dataset.mask(sample)
    sums.add(overlap(segmenter.segment(state, sample.expression).mask, true_mask))
    result = segmenter.segment(state, sample.expression, paper=True)
    paper.add(overlap(result.mask, true_mask))

for name, scores in (("rism", sums), ("published method", paper)):
    figures = scores.summary()
    print(
        f"{name}: mIoU {figures['mIoU']:.3f}, oIoU {figures['oIoU']:.3f} of {figures['n']} samples"
    )
