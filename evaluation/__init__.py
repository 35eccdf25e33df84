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
        "datasets.open": ["open_dataset"],
        "datasets.request": ["DatasetRequest"],
        "datasets.sample": ["Dataset", "Problem", "Sample"],
        "datasets.scenes": ["SceneSet"],
        "metrics.iou": ["Overlap", "Sums", "auroc", "overlap", "summarise"],
    },
)
