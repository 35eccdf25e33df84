"""The names that dataset options take, each list written once; only `typing` is imported."""

from typing import Literal, get_args

PUBLISHED_DATASETS = ("refcoco", "refcoco+", "refcocog")
DATASET_SUFFIXES = (".jsonl", ".parquet")

# Who divided a published dataset into splits: docs/datasets.md.
SplitAuthor = Literal["unc", "umd", "google"]
SPLIT_AUTHORS: tuple[SplitAuthor, ...] = get_args(SplitAuthor)

# How several polygons become one true mask: docs/datasets.md.
MaskMerge = Literal["legacy", "union"]
MASK_MERGES: tuple[MaskMerge, ...] = get_args(MaskMerge)

# Which form of its sentences REFER's datasets are asked with: docs/datasets.md.
Wording = Literal["raw", "sent"]
WORDINGS: tuple[Wording, ...] = get_args(Wording)

# Sets of generated scenes: rism.evaluation.scenes.
SceneSetName = Literal["plain", "same-kind", "fine", "absent"]
SCENE_SETS: tuple[SceneSetName, ...] = get_args(SceneSetName)
