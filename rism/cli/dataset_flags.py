"""SOURCE where it means a dataset, with the flags that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rism.cli.console import UsageError
from rism.cli.flags import CommandFlags, argument, option, same_named
from rism.evaluation.names import (
    DATASET_SUFFIXES,
    PUBLISHED_DATASETS,
    MaskMerge,
    SceneSetName,
    SplitAuthor,
    Wording,
)
from rism.runtime.errors import one_line

if TYPE_CHECKING:
    from rism.evaluation.datasets.sample import Dataset

KNOWN_DATASETS = f"{', '.join(PUBLISHED_DATASETS)}, scenes, FILE.jsonl or FILE.parquet"

source_argument = partial(argument, ..., metavar="SOURCE", help=f"{KNOWN_DATASETS}.")


@dataclass(frozen=True, kw_only=True)
class DatasetFlags(CommandFlags):
    """The flags that choose a dataset; see `rism.evaluation.datasets.request.DatasetRequest`."""

    source: str = source_argument()
    root: Path | None = option(None, metavar="DIR", help="The folder with the dataset's files.")
    split_by: SplitAuthor | None = option(
        None, help="Who made the split. Default: unc; of refcocog umd."
    )
    split: str | None = option(
        None,
        help="val, testA, testB or test; default: val. Of scenes tuning or test; default: test.",
    )
    wording: Wording = option(
        "raw", help="Sentences as people typed them (raw), or as REFER cleaned them (sent)."
    )
    kind: SceneSetName = option("plain", help="Which set of scenes.")
    count: int | None = option(None, min=1, help="Number of scenes. Default: 500.")
    limit: int | None = option(None, min=1, help="Use only the first samples of the dataset.")
    gt_merge: MaskMerge = "legacy"
    offset: int = 0
    seed: int = 0
    columns: str | None = None

    @property
    def names_dataset(self) -> bool:
        """Whether `source` is the name of a dataset or of a file of one, existing or not."""
        known = (*PUBLISHED_DATASETS, "scenes")
        return self.source in known or Path(self.source).suffix in DATASET_SUFFIXES

    def check(self) -> None:
        """Refuse flags that do not go together.

        Raises:
            UsageError: some are of another kind of dataset.
        """
        scenes = self.source == "scenes"
        if scenes and (self.root or self.split_by or self.limit):
            raise UsageError("scenes are generated: they take --kind, --split and --count")
        if not scenes and (self.count or self.kind != "plain" or self.offset or self.seed):
            drawn = "--offset and --seed" if self.offset or self.seed else "--kind and --count"
            raise UsageError(f"{drawn} go with scenes; other datasets take --limit")
        if self.columns is not None and Path(self.source).suffix != ".parquet":
            raise UsageError("--columns goes with a FILE.parquet")

    def about(self) -> dict[str, Any]:
        """Return what decides which dataset it is, with the defaults filled in."""
        from rism.evaluation.datasets.splits import DEFAULT_SPLIT_BY

        if self.source == "scenes":
            about = {"source": "scenes", "kind": self.kind, "split": self.split or "test"}
            drawn = {"offset": self.offset, "seed": self.seed}
            return about | {name: value for name, value in drawn.items() if value}
        if self.source in DEFAULT_SPLIT_BY:
            return {
                "source": self.source,
                "split_by": self.split_by or DEFAULT_SPLIT_BY[self.source],
                "split": self.split or "val",
            }
        return {"source": Path(self.source).name, "split_by": self.split_by, "split": self.split}

    def open(self, command: str) -> Dataset:
        """Open it for `rism COMMAND`.

        Raises:
            RismError: it does not exist, nothing of it can be used, or packages are missing.
        """
        from rism.evaluation.datasets.open import open_dataset
        from rism.evaluation.datasets.request import DatasetRequest

        return open_dataset(
            same_named(
                DatasetRequest,
                self,
                limit=self.count or self.limit,
                columns=None if self.columns is None else _columns(self.columns),
                command=command,
            )
        )


@dataclass(frozen=True, kw_only=True)
class ScoredDatasetFlags(DatasetFlags):
    """The flags of a dataset whose true masks are used."""

    gt_merge: MaskMerge = option(
        "legacy",
        help="True mask of several polygons: as the public evaluators draw it (legacy), or "
        "all of them (union).",
    )


def _columns(text: str) -> dict[str, str]:
    """Read ROLE=COLUMN,...; the reader of the file knows the roles."""
    pairs = [part.partition("=") for part in text.split(",")]
    roles = [role.strip() for role, _, _ in pairs]
    if not all(role and column for role, _, column in pairs) or len(set(roles)) < len(roles):
        raise UsageError(
            f"--columns is '{one_line(text, limit=120)}', expected each role once, such as "
            "image=img,expression=caption,mask=rle"
        )
    return dict(zip(roles, (column.strip() for _, _, column in pairs), strict=True))
