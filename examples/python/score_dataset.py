"""Score the built-in model on the first samples of a dataset, one by one.

python examples/python/score_dataset.py scenes 10

The dataset may also be RefCOCO, or a parquet or JSON Lines file of your own (docs/datasets.md).
"""

import sys

from rism import Segmenter
from rism.evaluation import DatasetRequest, Sums, open_dataset, overlap

source, limit = sys.argv[1:]
dataset = open_dataset(DatasetRequest(source, limit=int(limit)))
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
