"""The file of a run: one line for each sample, so that an interrupted run can continue."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from rism.evaluation.metrics.iou import Overlap
from rism.evaluation.run.record_log import write_lines
from rism.runtime.errors import InputError, one_line

_FORMAT = "rism-ablation 1"
_NUMBERS = 4


class Records:
    """The file of a run: a line that describes the run, then a line for each sample.

    A sample's overlaps are integers, four for each setting, in the order of the first line.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], settings: Sequence[str]) -> None:
        """Open the file of this run, or create it; removes an incomplete line at its end.

        Args:
            path: the file.
            run: everything that the numbers depend on: model, dataset, options.
            settings: their names, in order.

        Raises:
            InputError: the file is of another run, or damaged.
            OutputError: it cannot be written.
        """
        self.path, self._settings = path, list(settings)
        header = {"format": _FORMAT, "run": dict(run), "settings": self._settings}
        if path.exists():
            self._resume(json.loads(json.dumps(header)))
        else:
            write_lines(path, [json.dumps(header)], "a")

    def _resume(self, header: Mapping[str, Any]) -> None:
        data = self.path.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        found = _line(complete.partition(b"\n")[0], self.path)
        if found != header:
            run, wanted = found.get("run"), header["run"]
            earlier = run if isinstance(run, dict) else {}
            other = [key for key in wanted if earlier.get(key) != wanted[key]] or ["settings"]
            raise InputError(
                f"{self.path} is of a run with another {', '.join(other)}: choose another folder "
                "with -o, or delete it to begin again"
            )
        if len(complete) < len(data):
            os.truncate(self.path, len(complete))

    def add(self, key: str, group: str, found: Sequence[Overlap]) -> None:
        """Append one sample's overlaps, one for each setting.

        Raises:
            OutputError: the file cannot be written.
        """
        numbers = [number for each in found for number in astuple(each)]
        entry = {"key": key, "group": group, "overlaps": numbers}
        write_lines(self.path, [json.dumps(entry, separators=(",", ":"))], "a")

    def __iter__(self) -> Iterator[tuple[str, list[Overlap]]]:
        """Read the samples: their keys and an overlap for each setting.

        Raises:
            InputError: a line is damaged.
        """
        with self.path.open("rb") as file:
            next(file)
            for number, raw in enumerate(file, 2):
                line = _line(raw, self.path)
                key, numbers = line.get("key"), line.get("overlaps")
                if (
                    not isinstance(key, str)
                    or not isinstance(numbers, list)
                    or len(numbers) != _NUMBERS * len(self._settings)
                    or not all(type(each) is int and each >= 0 for each in numbers)
                ):
                    raise InputError(
                        f"{self.path}: line {number} is not a sample of this run: delete the line, "
                        "and run the command again"
                    )
                starts = range(0, len(numbers), _NUMBERS)
                yield key, [Overlap(*numbers[at : at + _NUMBERS]) for at in starts]


def _line(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not the file of a run ({one_line(error, limit=80)}): choose another folder "
            "with -o, or delete it to begin again"
        ) from None
    return found if isinstance(found, dict) else {}
