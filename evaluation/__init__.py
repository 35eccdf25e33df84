"""Datasets, metrics, reports and ablations of referring segmentation.

Names are imported on first use.
"""

from typing import TYPE_CHECKING

from rism.lazy_names import lazy_names

if TYPE_CHECKING:
    from rism.evaluation.datasets.open import open_dataset
    from rism.evaluation.datasets.request import DatasetRequest
    from rism.evaluation.datasets.sample import Dataset, Problem, Sample
    from rism.evaluation.datasets.scenes import SceneSet
    from rism.evaluation.metrics.iou import Overlap, Sums, auroc, overlap, summarise

__all__ = [
    "Dataset",
    "DatasetRequest",
    "Overlap",
    "Problem",
    "Sample",
    "SceneSet",
    "Sums",
    "auroc",
    "open_dataset",
    "overlap",
    "summarise",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Dataset": "datasets.sample",
        "DatasetRequest": "datasets.request",
        "Overlap": "metrics.iou",
        "Problem": "datasets.sample",
        "Sample": "datasets.sample",
        "SceneSet": "datasets.scenes",
        "Sums": "metrics.iou",
        "auroc": "metrics.iou",
        "open_dataset": "datasets.open",
        "overlap": "metrics.iou",
        "summarise": "metrics.iou",
    },
)
