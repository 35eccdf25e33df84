"""Opens the dataset that a request selects."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rism.evaluation.datasets.request import DatasetRequest
from rism.evaluation.datasets.sample import Dataset
from rism.evaluation.datasets.splits import DEFAULT_SPLIT_BY, SPLITS, partition_notes
from rism.evaluation.names import (
    DATASET_SUFFIXES,
    MASK_MERGES,
    PUBLISHED_DATASETS,
    SPLIT_AUTHORS,
    WORDINGS,
)
from rism.runtime.distribution import needs_extra
from rism.runtime.errors import InputError, one_line

if TYPE_CHECKING:
    from rism.evaluation.datasets.parquet import Parquet

_FOLDER_NAMES = {"refcoco": "refcoco", "refcoco+": "refcoco_plus", "refcocog": "refcocog"}
# Hubs' names for REFER's splits; "test" is testA only where there is no file of that name.
_ALIASES = {"val": ("val", "validation"), "testA": ("testA", "test")}


def open_dataset(request: DatasetRequest) -> Dataset:
    """Open a dataset; its `problems` name the parts that cannot be scored.

    Raises:
        InputError: it is not there, or nothing of it can be scored; the message says which files
            were expected, and which were found.
    """
    _check_choice("--gt-merge", request.gt_merge, MASK_MERGES)
    _check_choice("--wording", request.wording, WORDINGS)
    if request.limit is not None and request.limit < 1:
        raise InputError(f"--limit is {request.limit}, expected at least 1")
    if request.source == "scenes":
        return _open_scenes(request)
    if request.source in PUBLISHED_DATASETS:
        return _open_published(request)
    file = Path(request.source)
    if file.suffix in DATASET_SUFFIXES and not file.is_file():
        raise InputError(f"'{one_line(file)}' is not there: check the path")
    if file.suffix == ".jsonl":
        with needs_extra("eval", request.command):
            from rism.evaluation.datasets.jsonl import open_lines
        return open_lines(file, request)
    if file.suffix == ".parquet":
        return _open_parquet([file], request, name=file.stem)
    raise InputError(
        f"'{one_line(request.source)}' is not a dataset, expected {', '.join(PUBLISHED_DATASETS)}, "
        "scenes, or the path of a FILE.jsonl or FILE.parquet"
    )


def _check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(
            f"{flag} is '{one_line(value, limit=40)}', expected one of {', '.join(choices)}"
        )


def _open_scenes(request: DatasetRequest) -> Dataset:
    from rism.evaluation.datasets.scenes import SceneSet

    return SceneSet(
        kind=request.kind,
        split=request.split or "test",
        offset=request.offset,
        seed=request.seed,
        **({} if request.limit is None else {"count": request.limit}),
    )


def _open_published(request: DatasetRequest) -> Dataset:
    dataset = request.source
    if request.root is None:
        raise InputError(
            f"{dataset} needs --root, the folder with {dataset}/ and COCO's images: "
            "docs/datasets.md says what to put there"
        )
    split_by = request.split_by or DEFAULT_SPLIT_BY[dataset]
    split = request.split or "val"
    _check_choice("--split-by", split_by, SPLIT_AUTHORS)
    _check_choice("--split", split, SPLITS)
    files = (
        [] if (request.root / dataset).is_dir() else _parts(request.root, dataset, split_by, split)
    )
    if files:
        opened = _open_parquet(files, request, name=f"{dataset} {split_by} {split}")
        objects, sentences = opened.counts
        notes = partition_notes(
            dataset, split, split_by=split_by, objects=objects, sentences=sentences
        )
        return dataclasses.replace(opened, notes=(*opened.notes, *notes))
    with needs_extra("eval", request.command):
        from rism.evaluation.datasets.refcoco import open_refer
    return open_refer(request, request.root, split_by=split_by, split=split)


def _parts(root: Path, dataset: str, split_by: str, split: str) -> list[Path]:
    """Parquet files of a split: SPLIT-*.parquet, under root or root/data, by several names."""
    names = _ALIASES.get(split, (split,))
    prefixes = [f"{_FOLDER_NAMES[dataset]}_{split_by}_{name}" for name in names]
    for prefix in (*prefixes, *names):
        for folder in (root / "data", root):
            parts = sorted(folder.glob(f"{prefix}-*.parquet")) or sorted(
                folder.glob(f"{prefix}.parquet")
            )
            if parts:
                return parts
    return []


def _open_parquet(files: list[Path], request: DatasetRequest, *, name: str) -> Parquet:
    with needs_extra("eval", request.command):
        from rism.evaluation.datasets.parquet import open_parquet
    return open_parquet(files, request, name=name)
