"""SOURCE where it means a dataset, with the flags that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rism.runtime.cli.console import UsageError
from rism.runtime.cli.extras import import_extra

__all__ = ["DatasetFlags"]

_PUBLISHED = ("refcoco", "refcoco+", "refcocog")
_FILES = (".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class DatasetFlags:
    """The flags that say which dataset; see `rism.evaluation.opening.Request`."""

    source: str
    root: Path | None = None
    split_by: str | None = None
    split: str | None = None
    gt_merge: str = "legacy"
    wording: str = "raw"
    kind: str = "plain"
    count: int | None = None
    limit: int | None = None

    @property
    def names_dataset(self) -> bool:
        """Whether `source` is the name of a dataset or of a file of one, there or not."""
        return self.source in (*_PUBLISHED, "scenes") or Path(self.source).suffix in _FILES

    def check(self) -> None:
        """Refuse flags that do not go together.

        Raises:
            UsageError: some of other datasets.
        """
        scenes = self.source == "scenes"
        if scenes and (self.root or self.split_by or self.limit):
            raise UsageError("scenes are drawn: they take --kind, --split and --count")
        if not scenes and (self.count or self.kind != "plain"):
            raise UsageError("--kind and --count go with scenes; others take --limit")

    def about(self, command: str) -> dict[str, Any]:
        """Say what decides which dataset it is, defaults filled in."""
        if self.source == "scenes":
            return {"source": "scenes", "kind": self.kind, "split": self.split or "test"}
        default = _module("partitions", command).DEFAULT_SPLIT_BY
        if self.source in default:
            return {
                "source": self.source,
                "split_by": self.split_by or default[self.source],
                "split": self.split or "val",
            }
        return {"source": Path(self.source).name, "split_by": self.split_by, "split": self.split}

    def open(self, command: str) -> Any:
        """Open it for `rism COMMAND`.

        Raises:
            RismError: it is not there, nothing of it can be used, or packages are missing.
        """
        opening, about = _module("opening", command), self.about(command)
        return opening.open_dataset(
            opening.Request(
                source=self.source,
                root=self.root,
                split_by=about.get("split_by"),
                split=about["split"],
                gt_merge=self.gt_merge,
                wording=self.wording,
                kind=self.kind,
                limit=self.count or self.limit,
                command=command,
            )
        )


def _module(name: str, command: str) -> Any:
    return import_extra(f"rism.evaluation.{name}", command=command, extra="eval")
