"""What a run leaves when it is through: result.json and report.html, and shards as one run."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rism.evaluation.datasets.sample import Dataset, Problem
from rism.evaluation.report.html import page
from rism.evaluation.report.summary import summarise_records
from rism.evaluation.run.record_log import RECORDS, REPORT, RESULT, read_records, read_run
from rism.evaluation.run.records import Record, Run
from rism.evaluation.run.runner import digest, grouped, part
from rism.runtime.atomic_write import write_atomically
from rism.runtime.diagnostics.environment import packages, the_driver
from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.errors import InputError, OutputError, one_line

__all__ = ["conclude", "machine", "merge", "now"]

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
) -> dict[str, Any]:
    """Sum up a folder's records, and write result.json and report.html beside them.

    Args:
        dataset: what was scored.
        folder: with records.
        problems: samples that could not be scored.
        about: what else is to be known of the dataset; "source", "split_by" and "split" decide
            which of the paper's figures stand beside the result.

    Returns:
        What result.json says.

    Raises:
        InputError: the records are damaged.
        OutputError: the folder takes no files.
    """
    run = read_run(folder)
    summary = summarise_records(read_records(folder))
    mine = part(grouped(dataset.samples), run.shard)
    samples = sum(map(len, mine.values()))
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
            "pictures": len(mine),
            "scored": summary.scored,
            "not scored": len(problems),
            "left out on opening": len(dataset.problems),
        },
        **summary.to_json_dict(),
        "problems": [asdict(problem) for problem in problems],
        "left out": [asdict(problem) for problem in dataset.problems],
    }
    write_atomically(folder / REPORT, page(result, summary, dataset).encode())
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / RESULT, text.encode())
    return result


def merge(
    dataset: Dataset, shards: Sequence[Path], folder: Path, *, replacing: bool = False
) -> list[Problem]:
    """Put the records of all shards into one file, as one run would have left it.

    Args:
        dataset: what the shards scored.
        shards: their folders.
        folder: where the file goes.
        replacing: there may be records.

    Returns:
        The problems of all shards.

    Raises:
        InputError: a shard is missing, given twice, unfinished or of another run or dataset.
        OutputError: the folder takes no files.
    """
    whole = _whole([read_run(shard) for shard in shards], shards, dataset)
    if (folder / RECORDS).exists() and not replacing:
        raise InputError(f"{folder} has records: choose another with --output, or use --restart")
    # Read before anything is written: the folder may be that of a shard.
    problems = [problem for shard in shards for problem in _problems(shard)]
    temporary = folder / f".{RECORDS}.tmp-{secrets.token_hex(6)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(whole.to_json() + "\n")
            for record in _all_records(shards, dataset):
                stream.write(record.to_json() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(folder / RECORDS)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return problems


def _all_records(shards: Sequence[Path], dataset: Dataset) -> Iterator[Record]:
    """Records of one shard after the other; each must have all of its part, once."""
    pictures = grouped(dataset.samples)
    for shard in shards:
        mine = part(pictures, read_run(shard).shard)
        waiting = {sample.key for group in mine.values() for sample in group}
        for record in read_records(shard):
            if record.key not in waiting:
                raise InputError(
                    f"sample '{one_line(record.key)}' of {shard} is there twice, or is none of "
                    "its own: score this shard again with --restart"
                )
            waiting.remove(record.key)
            yield record
        missing = len(waiting) - len(_problems(shard))
        if missing:
            raise InputError(
                f"{shard} lacks {missing} of its samples: run this shard again, it continues"
            )


def _whole(runs: Sequence[Run], shards: Sequence[Path], dataset: Dataset) -> Run:
    """Make sure that shards are all the parts of one run of a dataset, and return that."""
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
    """Read what a finished shard could not score."""
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
    """Say what this machine and its packages are."""
    driver = the_driver()
    gpus = () if isinstance(driver, str) else driver.gpus
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "CPUs": str(cpu_count()),
        **({"GPUs": ", ".join(gpu.name for gpu in gpus)} if gpus else {}),
        **packages(),
    }
