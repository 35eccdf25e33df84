"""`rism ablate`: the paper's ablations, repeated on a dataset."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rism.cli.console import Console, UsageError
from rism.cli.dataset_flags import ScoredDatasetFlags
from rism.cli.flags import (
    CheckpointFlags,
    QuietFlags,
    instructions_option,
    option,
    same_named,
    tau_option,
    template_option,
    threads_option,
)
from rism.export.names import FEATURE_SITES, FloatPrecision
from rism.runtime.distribution import needs_extra
from rism.runtime.errors import OutputError, RismError

if TYPE_CHECKING:
    from rism.runtime.prompt.refiner import Refiner


@dataclass(frozen=True, kw_only=True)
class AblateFlags(ScoredDatasetFlags, CheckpointFlags, QuietFlags):
    """The flags of `rism ablate`."""

    output: Path = option(
        ...,
        "--output",
        "-o",
        metavar="DIR",
        help="The folder to write; an interrupted run continues in its folder.",
    )
    model: str = option(
        "mini", metavar="NAME|PATH", help="A checkpoint as for rism export: weights, not a bundle."
    )
    precision: FloatPrecision | None = option(
        None, help="Precision to compute in. Default: the model's own."
    )
    device: str = option(
        "cpu", help="PyTorch's name of the transformer's device: cpu, cuda, cuda:1."
    )
    text_device: str | None = option(
        None, metavar="DEVICE", help="Device of the text encoder. Default: the same."
    )
    size_level: int | None = option(
        None, min=8, max=8192, help="Resize images to about N x N pixels."
    )
    template: str | None = template_option()
    instructions: Path | None = instructions_option()
    tau: float | None = tau_option()
    steps: int | None = option(
        None, min=1, max=9999, help="Number of denoising steps. Default: as published."
    )
    timesteps: str | None = option(
        None, metavar="LIST", help="Steps to capture, such as 0,5,10; always with 0."
    )
    blocks: str | None = option(
        None, metavar="LIST", help="Blocks whose features are used: 0,10,20 or 0-7. Default: all."
    )
    noisy_grids: str = option(
        "1,2",
        metavar="LIST",
        help="Noisy tokens in every N-th row and column only; above 1 each takes another pass.",
    )
    sites: str | None = option(
        None,
        metavar="LIST",
        help=f"Where features are read: {','.join(FEATURE_SITES)}. Default: all.",
    )
    threads: int | None = threads_option()


def ablate(flags: AblateFlags, console: Console) -> None:
    """Repeat the paper's ablations on SOURCE: tables 2 and 3, figures 3, 4 and 5."""
    from rism.cli.outputs import check_outputs

    timesteps, blocks = _numbers("timesteps", flags.timesteps), _numbers("blocks", flags.blocks)
    sites = _sites(flags.sites)
    # A missing package is reported now, not after hours.
    with needs_extra("eval", "ablate"):
        import rism.evaluation.ablate.plots  # noqa: F401
    with needs_extra("export", "ablate"):
        import torch

        from rism.evaluation.ablate.model import ModelOptions
        from rism.evaluation.ablate.study import RECORDS, Study
        from rism.evaluation.ablate.study import ablate as run_study
    if flags.threads is not None:
        torch.set_num_threads(flags.threads)
    dataset = flags.open("ablate")
    for note in dataset.notes:
        console.note(f"{dataset.name}: {note}")
    refiner, wording = _instructions(flags.instructions)
    check_outputs([flags.output / RECORDS], [Path(flags.source)])
    _make_folder(flags.output)
    options = same_named(ModelOptions, flags)
    start = time.perf_counter()
    outcome = run_study(
        dataset,
        Study(
            options,
            timesteps,
            blocks,
            sites,
            noisy_grids=_numbers("noisy-grids", flags.noisy_grids) or (1,),
            tau=flags.tau,
            refiner=refiner,
            wording=wording,
        ),
        flags.output,
        command=shlex.join(["rism", *sys.argv[1:]]),
        progress=console.progress,
    )
    console.note(
        f"{outcome.count} samples, {len(outcome.grid.settings)} settings, "
        f"{time.perf_counter() - start:.0f} s -> {flags.output / 'ablation.md'}"
    )
    problems = outcome.problems
    for each in problems[:10]:
        console.note(f"not scored: {each.where}: {each.what}")
    if problems:
        raise RismError(
            f"{len(problems)} samples could not be scored, the first is {problems[0].where}: "
            "correct the dataset and run the same command again, it continues where it stopped"
        )


def _instructions(file: Path | None) -> tuple[Refiner | None, str]:
    """Open what `rism refine` wrote, and name it by its contents."""
    from rism.runtime.prompt.instruction_file import InstructionFile

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
    found = None if text is None else tuple(part.strip() for part in text.split(","))
    if not set(found or ()) <= set(FEATURE_SITES):
        raise UsageError(f"--sites is '{text}', expected some of {','.join(FEATURE_SITES)}")
    return found
