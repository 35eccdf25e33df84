"""`rism ablate`: the door to rism.evaluation.ablate, which the runtime otherwise never opens."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rism.runtime.cli.console import Console, UsageError
from rism.runtime.cli.outputs import check_outputs
from rism.runtime.errors import OutputError, RismError
from rism.runtime.extras import import_extra
from rism.runtime.prompt.instruction_file import InstructionFile
from rism.runtime.prompt.refiner import Refiner

__all__ = ["AblateFlags", "ablate_model"]

_SITES = ("mmsa", "adaln", "block")


@dataclass(frozen=True)
class AblateFlags:
    """The flags of `rism ablate`."""

    source: str
    output: Path
    root: Path | None = None
    split_by: str | None = None
    split: str | None = None
    gt_merge: str = "legacy"
    wording: str = "raw"
    limit: int | None = None
    kind: str = "plain"
    model: str = "mini"
    precision: str | None = None
    device: str = "cpu"
    text_device: str | None = None
    size_level: int | None = None
    template: str | None = None
    instructions: Path | None = None
    tau: float | None = None
    steps: int | None = None
    timesteps: str | None = None
    blocks: str | None = None
    sites: str | None = None
    revision: str | None = None
    offline: bool = False
    threads: int | None = None


def ablate_model(flags: AblateFlags, console: Console) -> None:
    """Repeat the paper's ablations, and write tables, plots and a page.

    Raises:
        UsageError: a list that is none.
        OutputError: the folder cannot be made.
        RismError: packages are missing, the dataset or the model cannot be used, or some samples
            could not be scored.
    """
    timesteps, blocks = _numbers("timesteps", flags.timesteps), _numbers("blocks", flags.blocks)
    sites = _sites(flags.sites)
    # What would be missing hours later is missing now.
    import_extra("rism.evaluation.ablate.plots", command="ablate", extra="eval")
    opening = import_extra("rism.evaluation.datasets.open", command="ablate", extra="eval")
    study = import_extra("rism.evaluation.ablate.study", command="ablate", extra="export")
    models = import_extra("rism.evaluation.ablate.model", command="ablate", extra="export")
    _use_threads(flags.threads)
    dataset = opening.open_dataset(
        opening.Request(
            source=flags.source,
            root=flags.root,
            split_by=flags.split_by,
            split=flags.split,
            gt_merge=flags.gt_merge,
            limit=flags.limit,
            kind=flags.kind,
            wording=flags.wording,
            command="ablate",
        )
    )
    for note in dataset.notes:
        console.note(f"{dataset.name}: {note}")
    refiner, words = _instructions(flags.instructions)
    check_outputs([flags.output / study.RECORDS], [Path(flags.source)])
    _make_folder(flags.output)
    options = models.ModelOptions(
        model=flags.model,
        precision=flags.precision,
        device=flags.device,
        text_device=flags.text_device,
        size_level=flags.size_level,
        template=flags.template,
        steps=flags.steps,
        revision=flags.revision,
        offline=flags.offline,
    )
    start = time.perf_counter()
    outcome = study.ablate(
        dataset,
        study.Study(options, timesteps, blocks, sites, flags.tau, refiner, words),
        flags.output,
        command=shlex.join(["rism", *sys.argv[1:]]),
        progress=console.progress,
    )
    console.note(
        f"{outcome.count} samples, {len(outcome.grid.settings)} settings, "
        f"{time.perf_counter() - start:.0f} s -> {flags.output / 'ablation.md'}"
    )
    _say_problems(outcome.problems, console)


def _say_problems(problems: tuple[Any, ...], console: Console) -> None:
    for each in problems[:10]:
        console.note(f"not scored: {each.where}: {each.what}")
    if problems:
        raise RismError(
            f"{len(problems)} samples could not be scored, the first is {problems[0].where}: "
            "mend the dataset and run the same command again, it goes on where it stopped"
        )


def _instructions(file: Path | None) -> tuple[Refiner | None, str]:
    """Open what `rism refine` wrote, and name it by its contents."""
    if file is None:
        return None, ""
    found = InstructionFile.open(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return found, f"instructions of {found.origin.model}, {digest[:12]}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"folder {folder} cannot be made ({error.strerror or error}): choose another with -o"
        ) from None


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import_extra("torch", command="ablate", extra="export").set_num_threads(threads)


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """Read 0,5,10 or 0-7, or both."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part, re.ASCII)
        first, last = (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
        if last < first:
            raise UsageError(
                f"--{flag} is '{text}', expected numbers such as 0,5,10 or a range such as 0-7"
            )
        found += range(first, last + 1)
    return tuple(found)


def _sites(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    found = tuple(part.strip() for part in text.split(","))
    for each in found:
        if each not in _SITES:
            raise UsageError(f"--sites is '{text}', expected some of {','.join(_SITES)}")
    return found
