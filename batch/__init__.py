"""Segmentation of millions of images on Ray Data; `rism map` runs it.

- `pipeline.py`: a run from SOURCE to DEST on a local Ray or a cluster
- `source.py`: what SOURCE is, checked before work begins
- `readers.py`: rows of parquet files, JSON lines and tars
- `cluster.py`: Ray, connected to or started
- `images.py`: image files from stores, decoded
- `actor.py`: `RismActor`, a segmenter in a process of its own
- `results.py`: masks as COCO RLE, a row for each id and expression
- `destination.py`: part files that appear whole, the run's manifest, what is already written
- `tables.py`: the columns between these, ids as digests, stores
"""

from typing import TYPE_CHECKING

from rism.lazy_names import lazy_names

if TYPE_CHECKING:
    from rism.batch.actor import RismActor
    from rism.batch.images import decode
    from rism.batch.pipeline import BatchRun, BatchSummary, run_batch
    from rism.batch.results import encode, to_rows

__all__ = ["BatchRun", "BatchSummary", "RismActor", "decode", "encode", "run_batch", "to_rows"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "actor": ["RismActor"],
        "images": ["decode"],
        "pipeline": ["BatchRun", "BatchSummary", "run_batch"],
        "results": ["encode", "to_rows"],
    },
)
