"""Scoring: datasets, metrics, reports and ablations of referring segmentation.

Names are imported when first asked for, so that importing this package costs nothing.
"""

from typing import TYPE_CHECKING

from rism.lazy_names import lazy_names

if TYPE_CHECKING:
    from rism.evaluation.datasets.open import open_dataset
    from rism.evaluation.datasets.sample import Dataset, Problem, Sample
    from rism.evaluation.datasets.scenes import SceneSet
    from rism.evaluation.metrics.iou import Overlap, Sums, auroc, overlap

__all__ = [
    "Dataset",
    "Overlap",
    "Problem",
    "Sample",
    "SceneSet",
    "Sums",
    "auroc",
    "open_dataset",
    "overlap",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Dataset": "datasets.sample",
        "Overlap": "metrics.iou",
        "Problem": "datasets.sample",
        "Sample": "datasets.sample",
        "SceneSet": "datasets.scenes",
        "Sums": "metrics.iou",
        "auroc": "metrics.iou",
        "open_dataset": "datasets.open",
        "overlap": "metrics.iou",
    },
)
