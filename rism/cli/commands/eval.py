"""`rism eval`: scores of a bundle on a dataset."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rism import __version__
from rism.cli.console import Console, Countdown, UsageError, write_stdout
from rism.cli.dataset_flags import ScoredDatasetFlags, source_argument
from rism.cli.flags import QuietFlags, SegmenterFlags, argument, flags_set, option
from rism.runtime.errors import InputError, RismError, one_line

if TYPE_CHECKING:
    from rism.evaluation.datasets.sample import Dataset, Problem
    from rism.runtime.prompt.instruction_file import InstructionFile

_SHOWN_PROBLEMS = 5
# Flags of a run, which --merge takes from the shards.
_OF_A_RUN = (*SegmenterFlags.__annotations__, "engine", "shard", "against", "maps")


@dataclass(frozen=True, kw_only=True)
class EvalFlags(ScoredDatasetFlags, SegmenterFlags, QuietFlags):
    """The flags of `rism eval`."""

    source: str = source_argument()  # again, because it comes before DIR
    shards: list[Path] | None = argument(
        None, metavar="DIR", help="With --merge: the shards' folders."
    )
    offset: int = option(0, min=0, help="Number of the first scene.")
    seed: int = option(0, min=0, help="Another seed for the scenes; 0 is that of published scores.")
    columns: str | None = option(
        None,
        metavar="ROLE=COLUMN,...",
        help="Columns of your own FILE.parquet: image, expression, mask and optionally id.",
    )
    output: Path | None = option(
        None,
        "--output",
        "-o",
        metavar="DIR",
        help="The folder to write. Default: named after dataset and model.",
    )
    restart: bool = option(False, help="Discard the records that the folder has.")
    shard: str | None = option(None, metavar="I/N", help="Score the I-th of N parts of the images.")
    merge: bool = option(False, help="Merge the folders of all shards into one result.")
    batch: int = option(8, min=1, help="Expressions per run.")
    against: str | None = option(
        None,
        metavar="BUNDLE",
        help="Score another bundle too, into the folder's 'against', and compare the two sample "
        "by sample.",
    )
    maps: bool = option(False, help="Score the maps CAM > 0.5 and RAM > 0.5 too.")


def evaluate(flags: EvalFlags, console: Console) -> None:
    """Score a bundle on a dataset: records, result.json and a report page."""
    from rism.evaluation.report.outcome import conclude, merge
    from rism.evaluation.run.record_log import read_run

    shard = _check(flags)
    dataset = flags.open("eval")
    for note in dataset.notes:
        console.note(f"note: {one_line(note)}")
    if flags.merge and flags.shards:
        header = read_run(flags.shards[0])
        folder = flags.output or _folder(dataset.name, header.bundle, (1, 1))
        _keep_inputs(flags, folder)
        problems: Sequence[Problem] = merge(dataset, flags.shards, folder, replacing=flags.restart)
    else:
        folder, problems = _score(flags, dataset, shard, console)
    other = None
    if flags.against is not None:
        other = folder / "against"
        theirs = replace(flags, bundle=flags.against, output=other)
        _, others = _score(theirs, dataset, shard, console)
        conclude(dataset, other, others, about=flags.about())
    console.status("writing the report ...")
    result = conclude(dataset, folder, problems, about=flags.about(), against=other)
    console.clear()
    if not console.quiet:
        write_stdout(_table(result))
    console.note(f"{result['counts']['scored']} samples -> {folder}")
    _complain(result, [*dataset.problems, *problems], folder, console)


def _check(flags: EvalFlags) -> tuple[int, int]:
    """Refuse flags that do not go together, and return the shard."""
    if flags.merge:
        if useless := flags_set(flags, _OF_A_RUN):
            raise UsageError(f"--merge takes scores as they are, without {', '.join(useless)}")
        if not flags.shards:
            raise UsageError("--merge needs the shards' folders: rism eval SOURCE --merge DIR...")
    elif flags.shards:
        raise UsageError(f"'{flags.shards[0]}' is one SOURCE too many: folders go with --merge")
    flags.check()
    if flags.shard is None:
        return 1, 1
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", flags.shard, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard is '{flags.shard}', expected I/N, such as 2/4")
    return int(match[1]), int(match[2])


def _score(
    flags: EvalFlags, dataset: Dataset, shard: tuple[int, int], console: Console
) -> tuple[Path, Sequence[Problem]]:
    from rism.cli.result_format import DEMONSTRATOR
    from rism.evaluation.report.outcome import machine, now
    from rism.evaluation.run.records import Run
    from rism.evaluation.run.runner import digest, score, skip_grey_images, try_options
    from rism.runtime.prompt.instruction_file import InstructionFile

    options: dict[str, Any] = {**flags.options}
    file = flags.instructions
    said = None if file is None else InstructionFile.open(file)
    segmenter = flags.load(
        console,
        None if said is None else skip_grey_images(said),
        bundle=flags.bundle,
        max_batch=flags.batch,
    )
    if segmenter.manifest.model.demonstrator and flags.source != "scenes":
        console.note(DEMONSTRATOR)
    if said is not None:
        _expect_answers(said, dataset, flags.template or segmenter.manifest.prompt.template)
    try_options(segmenter, options)
    further = {
        "engine": flags.engine,
        "template": flags.template,
        "instructions": None if file is None else hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    run = Run(
        dataset=dataset.name,
        samples=len(dataset.samples),
        samples_digest=digest(dataset.samples),
        gt_merge=flags.gt_merge,
        bundle=segmenter.manifest.model.name,
        bundle_digest=segmenter.bundle.digest,
        capture=segmenter.capture,
        provider=segmenter.provider,
        precision=segmenter.precision,
        options=options | {key: value for key, value in further.items() if value is not None},
        maps=flags.maps,
        shard=shard,
        version=__version__,
        started=now(),
        machine=machine(),
    )
    folder = flags.output or _folder(dataset.name, run.bundle, shard)
    _keep_inputs(flags, folder)
    problems = score(
        dataset,
        segmenter,
        run,
        folder=folder,
        options=options,
        restart=flags.restart,
        progress=Countdown(console).step,
    )
    return folder, problems


def _keep_inputs(flags: EvalFlags, folder: Path) -> None:
    """Refuse a folder in which an input has the name of a result."""
    from rism.cli.outputs import check_outputs
    from rism.evaluation.run.record_log import RECORDS, REPORT, RESULT

    written = [folder / name for name in (RECORDS, RESULT, REPORT)]
    instructions = [] if flags.instructions is None else [flags.instructions]
    check_outputs(written, [Path(flags.source), *instructions])


def _expect_answers(said: InstructionFile, dataset: Dataset, template: str) -> None:
    """Refuse a file that has none of the instructions: of another dataset or template."""
    needed = [template.replace("{expression}", one.expression) for one in dataset.samples]
    if said.instructions.isdisjoint(needed):
        raise InputError(
            f"{one_line(said.name, limit=60)} has none of the {len(needed)} instructions of "
            f"{dataset.name}, such as '{one_line(needed[0], limit=60)}': make it with rism refine, "
            "of the same dataset and --template"
        )


def _folder(dataset: str, bundle: str, shard: tuple[int, int]) -> Path:
    """Name the folder of a run without -o."""
    words = [dataset, bundle, *([] if shard[1] == 1 else [f"{shard[0]}-of-{shard[1]}"])]
    return Path("-".join(["eval", *(re.sub(r"[^\w+.]+", "-", word)[:60] for word in words)]))


def _table(result: Mapping[str, Any]) -> str:
    """Format the scores in percent."""
    from rism.evaluation.metrics.iou import METRICS

    rows = {**result["metrics"], **result["groups"]}
    wide = max(len(one_line(name, limit=40)) for name in rows)
    widths = {metric: max(6, len(metric)) for metric in METRICS}
    head = (f"{metric:>{width}}" for metric, width in widths.items())
    lines = [" ".join([" " * wide, f"{'n':>6}", *head])]
    for name, row in rows.items():
        cells = (
            f"{100 * row[metric]:{width}.2f}" if row["n"] else ""
            for metric, width in widths.items()
        )
        lines.append(" ".join([f"{one_line(name, limit=40):<{wide}}", f"{row['n']:>6}", *cells]))
    if "absent" in result:
        absent = result["absent"]
        line = f"absent: {absent['answered empty']:.2%} of {absent['n']} answered empty"
        if "present answered empty" in result:
            line += f", of what is present {result['present answered empty']:.2%}"
        for name, value in absent.items():
            line += f"; {name} {value:.4f}" if name.startswith("AUROC") else ""
        lines.append(line)
    if "margin" in (against := result.get("against", {})):
        lines.append(
            f"against {one_line(against['bundle'], limit=40)} ({against['folder']}): mIoU "
            f"{100 * against['mIoU difference']:+.2f} ± {100 * against['margin']:.2f} points on "
            f"{against['n']} samples, {against['time ratio']:.2f} times its time"
        )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _complain(
    result: Mapping[str, Any], problems: Sequence[Problem], folder: Path, console: Console
) -> None:
    """Name the first problems, and fail if there are any."""
    for problem in problems[:_SHOWN_PROBLEMS]:
        console.error(f"{problem.where}: {problem.what}")
    if problems:
        counts = result["counts"]
        raise RismError(
            f"{counts['not scored']} of {counts['samples']} samples could not be scored and "
            f"{counts['left out on opening']} were left out on opening, all named in "
            f"{folder / 'result.json'}; the others are scored"
        )
