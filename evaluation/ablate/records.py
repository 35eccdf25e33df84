"""What is kept of a run: one line for each sample, so that a run can be cut off and go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from rism.evaluation.metrics.iou import Overlap
from rism.runtime.errors import InputError, OutputError, one_line

__all__ = ["Records"]

_FORMAT = "rism-ablation 1"
_NUMBERS = 4


class Records:
    """The file of a run: a line that says what is run, then a line for each sample.

    A sample's overlaps are integers, four for each setting, in the order of the first line.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], settings: Sequence[str]) -> None:
        """Open a file of this run, or begin it; a line that was cut off is taken away.

        Args:
            path: the file.
            run: what decides the numbers: model, dataset, options.
            settings: names, in order.

        Raises:
            InputError: the file is of another run, or damaged.
            OutputError: it cannot be written.
        """
        self.path, self._settings = path, list(settings)
        header = {"format": _FORMAT, "run": dict(run), "settings": self._settings}
        try:
            if path.exists():
                self._resume(json.loads(json.dumps(header)))
            else:
                path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror or error})") from None

    def _resume(self, header: Mapping[str, Any]) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        found = _line(whole.partition(b"\n")[0], self.path)
        if found != header:
            run, wanted = found.get("run"), header["run"]
            said = run if isinstance(run, dict) else {}
            other = [key for key in wanted if said.get(key) != wanted[key]] or ["settings"]
            raise InputError(
                f"{self.path} is of a run with another {', '.join(other)}: choose another folder "
                "with -o, or delete it to begin again"
            )
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def add(self, key: str, group: str, found: Sequence[Overlap]) -> None:
        """Write one sample's overlaps, one for each setting.

        Raises:
            OutputError: the disk is full.
        """
        numbers = [number for each in found for number in astuple(each)]
        line = json.dumps({"key": key, "group": group, "overlaps": numbers}, separators=(",", ":"))
        try:
            with self.path.open("ab") as file:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written ({error.strerror or error})"
            ) from None

    def __iter__(self) -> Iterator[tuple[str, list[Overlap]]]:
        """Read the samples back: their keys and an overlap for each setting.

        Raises:
            InputError: a line is damaged.
        """
        wanted = _NUMBERS * len(self._settings)
        with self.path.open("rb") as file:
            next(file)
            for number, raw in enumerate(file, 2):
                line = _line(raw, self.path)
                key, numbers = line.get("key"), line.get("overlaps")
                if (
                    not isinstance(key, str)
                    or not isinstance(numbers, list)
                    or len(numbers) != wanted
                    or not all(type(each) is int and each >= 0 for each in numbers)
                ):
                    raise InputError(
                        f"{self.path}: line {number} is no sample of this run: delete the line, "
                        "and run the command again"
                    )
                yield (
                    key,
                    [Overlap(*numbers[at : at + _NUMBERS]) for at in range(0, wanted, _NUMBERS)],
                )


def _line(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no file of a run ({one_line(error, limit=80)}): choose another folder "
            "with -o, or delete it to begin again"
        ) from None
    return found if isinstance(found, dict) else {}
