"""Writes result.json and report.html of a run, and merges the shards of a run."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rism.evaluation.datasets.sample import Dataset, Problem
from rism.evaluation.metrics.iou import paired
from rism.evaluation.report.html import page
from rism.evaluation.report.summary import summarise_records
from rism.evaluation.run.record_log import (
    RECORDS,
    REPORT,
    RESULT,
    read_records,
    read_run,
    write_records,
)
from rism.evaluation.run.records import Record, Run
from rism.evaluation.run.runner import digest, grouped, part
from rism.runtime.atomic_write import write_atomically
from rism.runtime.diagnostics.environment import packages, the_driver
from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.errors import InputError, one_line

FORMAT = "rism-eval-result"
SCHEMA_VERSION = "1.0"
_MAX_RESULT_BYTES = 256 * 2**20


def now() -> str:
    """Return the time as ISO 8601, in UTC to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def conclude(
    dataset: Dataset,
    folder: Path,
    problems: Sequence[Problem],
    *,
    about: Mapping[str, Any] | None = None,
    against: Path | None = None,
) -> dict[str, Any]:
    """Summarise a folder's records in result.json and report.html.

    `about` are more entries about the dataset; "source", "split_by" and "split" select the paper's
    figures for the report. `against` is the folder of another bundle's records of these samples.

    Returns:
        The content of result.json.

    Raises:
        InputError: the records are damaged.
        OutputError: a file cannot be written.
    """
    run = read_run(folder)
    summary = summarise_records(read_records(folder))
    images = part(grouped(dataset.samples), run.shard)
    samples = sum(map(len, images.values()))
    if summary.scored + len(problems) != samples:
        raise InputError(
            f"{folder} has {summary.scored} records of {samples} samples, expected "
            f"{samples - len(problems)}: did two runs write there at once? Use --restart"
        )
    result: dict[str, Any] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "dataset": {"name": dataset.name, **(about or {}), "notes": list(dataset.notes)},
        "run": asdict(run) | {"shard": list(run.shard)},
        "finished": now(),
        "counts": {
            "samples": samples,
            "pictures": len(images),
            "scored": summary.scored,
            "not scored": len(problems),
            "left out on opening": len(dataset.problems),
        },
        **summary.to_json_dict(),
        **({} if against is None else {"against": _compare(folder, against)}),
        "problems": [asdict(problem) for problem in problems],
        "left out": [asdict(problem) for problem in dataset.problems],
    }
    write_atomically(folder / REPORT, page(result, summary, dataset).encode())
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / RESULT, text.encode())
    return result


def _compare(folder: Path, other: Path) -> dict[str, Any]:
    """Compare two bundles sample by sample, where both have a record."""
    theirs = {record.key: (record.overlap.iou, record.ms) for record in read_records(other)}
    pairs = [
        (record.overlap.iou, record.ms, *theirs[record.key])
        for record in read_records(folder)
        if record.key in theirs
    ]
    found: dict[str, Any] = {
        "bundle": read_run(other).bundle,
        "folder": other.name,
        "n": len(pairs),
    }
    if len(pairs) > 1:
        own_iou, own_ms, iou, ms = np.array(pairs).T
        difference, margin = paired(own_iou, iou)
        found |= {"mIoU difference": difference, "margin": margin}
        found["time ratio"] = float(np.median(own_ms) / np.median(ms))
    return found


def merge(
    dataset: Dataset, shards: Sequence[Path], folder: Path, *, replacing: bool = False
) -> list[Problem]:
    """Merge the records of all shards into one file, like that of an undivided run.

    Only with `replacing` may the new file's folder have records.

    Returns:
        The problems of all shards.

    Raises:
        InputError: a shard is missing, given twice, unfinished or of another run or dataset.
        OutputError: the file cannot be written.
    """
    header = _merged_run([read_run(shard) for shard in shards], shards, dataset)
    if (folder / RECORDS).exists() and not replacing:
        raise InputError(f"{folder} has records: choose another with --output, or use --restart")
    # Read before anything is written: the folder may be that of a shard.
    problems = [problem for shard in shards for problem in _problems(shard)]
    records = (record.to_json() for record in _all_records(shards, dataset))
    write_records(folder, chain([header.to_json()], records))
    return problems


def _all_records(shards: Sequence[Path], dataset: Dataset) -> Iterator[Record]:
    """Read the records of all shards; each must have every sample of its part once."""
    images = grouped(dataset.samples)
    for shard in shards:
        own = part(images, read_run(shard).shard)
        waiting = {sample.key for group in own.values() for sample in group}
        for record in read_records(shard):
            if record.key not in waiting:
                raise InputError(
                    f"sample '{one_line(record.key)}' of {shard} is there twice, or belongs to "
                    "another shard: score this shard again with --restart"
                )
            waiting.remove(record.key)
            yield record
        missing = len(waiting) - len(_problems(shard))
        if missing:
            raise InputError(
                f"{shard} lacks {missing} of its samples: run this shard again, it continues"
            )


def _merged_run(runs: Sequence[Run], shards: Sequence[Path], dataset: Dataset) -> Run:
    """Check that shards are all parts of one run of a dataset, and return its header."""
    first = runs[0]
    for run, shard in zip(runs, shards, strict=True):
        found = first.differences(run, ignore=("shard",))
        if found:
            raise InputError(f"{shard} is not of the same run as {shards[0]} ({'; '.join(found)})")
    if first.samples_digest != digest(dataset.samples):
        raise InputError(
            f"{shards[0]} has scores of '{one_line(first.dataset)}' with {first.samples} samples, "
            f"this is '{one_line(dataset.name)}' with {len(dataset.samples)}: expected the same"
        )
    numbers, count = [run.shard[0] for run in runs], first.shard[1]
    for run, shard in zip(runs, shards, strict=True):
        if run.shard[1] != count:
            raise InputError(
                f"{shard} is shard {run.shard[0]}/{run.shard[1]}, {shards[0]} is one of {count}"
            )
        if numbers.count(run.shard[0]) > 1:
            raise InputError(f"shard {run.shard[0]}/{count} is given twice, also in {shard}")
    missing = sorted({*range(1, count + 1)} - {*numbers})
    if missing:
        raise InputError(
            f"shard {', '.join(f'{number}/{count}' for number in missing)} is missing, expected "
            f"folders of all {count}"
        )
    return replace(first, shard=(1, 1))


def _problems(shard: Path) -> list[Problem]:
    """Read the problems of a finished shard."""
    file = shard / RESULT
    try:
        with file.open("rb") as stream:
            data = json.loads(stream.read(_MAX_RESULT_BYTES))
        return [Problem(str(each["where"]), str(each["what"])) for each in data["problems"]]
    except FileNotFoundError:
        raise InputError(f"{shard} has no {RESULT}: run this shard again, it continues") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{file} is damaged: run this shard again") from None


def machine() -> dict[str, str]:
    """Describe this machine and its packages."""
    driver = the_driver()
    gpus = () if isinstance(driver, str) else driver.gpus
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "CPUs": str(cpu_count()),
        **({"GPUs": ", ".join(gpu.name for gpu in gpus)} if gpus else {}),
        **packages(),
    }
