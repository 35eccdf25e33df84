"""SOURCE where it means a dataset, with the flags that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rism.runtime.cli.console import UsageError
from rism.runtime.errors import one_line
from rism.runtime.extras import import_extra

__all__ = ["DatasetFlags"]

_PUBLISHED = ("refcoco", "refcoco+", "refcocog")
_FILES = (".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class DatasetFlags:
    """The flags that say which dataset; see `rism.evaluation.datasets.open.Request`."""

    source: str
    root: Path | None = None
    split_by: str | None = None
    split: str | None = None
    gt_merge: str = "legacy"
    wording: str = "raw"
    kind: str = "plain"
    count: int | None = None
    limit: int | None = None
    offset: int = 0
    seed: int = 0
    columns: str | None = None

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
        if not scenes and (self.count or self.kind != "plain" or self.offset or self.seed):
            drawn = "--offset and --seed" if self.offset or self.seed else "--kind and --count"
            raise UsageError(f"{drawn} go with scenes; others take --limit")
        if self.columns is not None and Path(self.source).suffix != ".parquet":
            raise UsageError("--columns goes with a FILE.parquet")

    def about(self, command: str) -> dict[str, Any]:
        """Say what decides which dataset it is, defaults filled in."""
        if self.source == "scenes":
            about = {"source": "scenes", "kind": self.kind, "split": self.split or "test"}
            drawn = {"offset": self.offset, "seed": self.seed}
            return about | {name: value for name, value in drawn.items() if value}
        default = _module("datasets.splits", command).DEFAULT_SPLIT_BY
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
        opening, about = _module("datasets.open", command), self.about(command)
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
                offset=self.offset,
                seed=self.seed,
                columns=None if self.columns is None else _columns(self.columns),
                command=command,
            )
        )


def _columns(text: str) -> dict[str, str]:
    """Read ROLE=COLUMN,...; which roles there are is the reader's to say."""
    pairs = [part.partition("=") for part in text.split(",")]
    roles = [role.strip() for role, _, _ in pairs]
    if not all(role and column for role, _, column in pairs) or len(set(roles)) < len(roles):
        raise UsageError(
            f"--columns is '{one_line(text, limit=120)}', expected each once, such as "
            "image=img,expression=caption,mask=rle"
        )
    return dict(zip(roles, (column.strip() for _, _, column in pairs), strict=True))


def _module(name: str, command: str) -> Any:
    return import_extra(f"rism.evaluation.{name}", command=command, extra="eval")
