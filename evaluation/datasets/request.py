"""The description of a dataset that `open_dataset` opens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DatasetRequest:
    """Selects a dataset and how it is read.

    Attributes:
        source: "refcoco", "refcoco+", "refcocog", "scenes", or the path of a FILE.jsonl or
            FILE.parquet.
        root: the folder of REFER's datasets, or of parquet files.
        split_by: "unc", "umd" or "google"; None for the one that papers report.
        split: "val", "testA", "testB" or "test", of scenes "tuning" or "test"; None for "val" and
            "test".
        gt_merge: how several polygons become one mask, "legacy" or "union"
            (`rism.evaluation.datasets.masks.decode_segmentation`).
        limit: only the first so many samples.
        kind: of scenes: "plain", "same-kind", "fine" or "absent".
        offset, seed: of scenes; see `rism.evaluation.datasets.scenes.SceneSet`.
        columns: of a FILE.parquet: the columns of "image", "expression", "mask" and optionally
            "id", one sample per row, where their names differ; None for a known layout.
        wording: "raw", the sentences as typed, which LAVT and the training-free evaluators use, or
            "sent", lower case without punctuation.
        command: in `rism COMMAND`, for messages.
    """

    source: str
    root: Path | None = None
    split_by: str | None = None
    split: str | None = None
    gt_merge: str = "legacy"
    limit: int | None = None
    kind: str = "plain"
    offset: int = 0
    seed: int = 0
    columns: Mapping[str, str] | None = None
    wording: str = "raw"
    command: str = "eval"
