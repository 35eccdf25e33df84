"""`rism eval`: the door to rism.evaluation, which the runtime otherwise never opens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rism import __version__
from rism.runtime.cli.console import Console, Countdown, UsageError, write_stdout
from rism.runtime.cli.datasets import DatasetFlags
from rism.runtime.cli.outputs import check_outputs
from rism.runtime.cli.report import DEMONSTRATOR
from rism.runtime.errors import InputError, RismError, one_line
from rism.runtime.extras import import_extra
from rism.runtime.prompt.instruction_file import InstructionFile
from rism.runtime.prompt.refiner import Refiner
from rism.runtime.segmenter import Segmenter

__all__ = ["EvalFlags", "evaluate_bundle"]

_SHOWN_PROBLEMS = 5


@dataclass(frozen=True, kw_only=True)
class EvalFlags(DatasetFlags):
    """The flags of `rism eval`; `options` are keyword arguments of `Segmenter.segment`."""

    shards: tuple[Path, ...] = ()
    output: Path | None = None
    restart: bool = False
    shard: str | None = None
    merge: bool = False
    bundle: str | None = None
    provider: str = "auto"
    device: int = 0
    precision: str | None = None
    engine: str | None = None
    capture: str | None = None
    batch: int = 8
    threads: int | None = None
    template: str | None = None
    instructions: Path | None = None
    maps: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def _set(**options: Any) -> dict[str, Any]:
    """Keep the options that were set."""
    return {name: value for name, value in options.items() if value is not None}


def evaluate_bundle(flags: EvalFlags, console: Console) -> None:
    """Score a dataset, or merge the scores of its shards, and print the table.

    Raises:
        UsageError: flags that do not go together.
        RismError: the dataset, the bundle or the folder cannot be used, or some samples could
            not be scored; the others are, and all is written.
    """
    shard = _check(flags)
    about, dataset = flags.about("eval"), flags.open("eval")
    outcome = _module("report.outcome")
    for note in dataset.notes:
        console.note(f"note: {one_line(note)}")
    if flags.merge:
        header = _module("run.record_log").read_run(flags.shards[0])
        folder = flags.output or _folder(dataset.name, header.bundle, (1, 1))
        _keep_inputs(flags, folder)
        problems = outcome.merge(dataset, flags.shards, folder, replacing=flags.restart)
    else:
        folder, problems = _score(flags, dataset, shard, console)
    console.status("writing the report ...")
    result = outcome.conclude(dataset, folder, problems, about=about)
    console.clear()
    if not console.quiet:
        write_stdout(_table(result))
    console.note(f"{result['counts']['scored']} samples -> {folder}")
    _complain(result, [*dataset.problems, *problems], folder, console)


def _check(flags: EvalFlags) -> tuple[int, int]:
    """Refuse flags that do not go together, and return the shard."""
    if flags.merge:
        asked = {
            "--bundle": flags.bundle, "--shard": flags.shard, "--capture": flags.capture,
            "--precision": flags.precision, "--engine": flags.engine,
            "--template": flags.template, "--instructions": flags.instructions,
            "--maps": flags.maps, **{f"--{name}": True for name in flags.options},
        }  # fmt: skip
        useless = [name for name, value in asked.items() if value]
        if useless:
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
    flags: EvalFlags, dataset: Any, shard: tuple[int, int], console: Console
) -> tuple[Path, Sequence[Any]]:
    runner, records, outcome = (
        _module("run.runner"),
        _module("run.records"),
        _module("report.outcome"),
    )
    said = None if flags.instructions is None else InstructionFile.open(flags.instructions)
    segmenter = _load(flags, None if said is None else runner.except_grey(said), console)
    if said is not None:
        _expect_answers(said, dataset, flags.template or segmenter.manifest.prompt.template)
    runner.try_options(segmenter, flags.options)
    run = records.Run(
        dataset=dataset.name,
        samples=len(dataset.samples),
        samples_digest=runner.digest(dataset.samples),
        gt_merge=flags.gt_merge,
        bundle=segmenter.manifest.model.name,
        bundle_digest=segmenter.bundle.digest,
        capture=segmenter.capture,
        provider=segmenter.provider,
        precision=segmenter.precision,
        options={
            **flags.options,
            **_set(
                engine=flags.engine,
                template=flags.template,
                instructions=None if flags.instructions is None else _digest(flags.instructions),
            ),
        },
        maps=flags.maps,
        shard=shard,
        version=__version__,
        started=outcome.now(),
        machine=outcome.machine(),
    )
    folder = flags.output or _folder(dataset.name, run.bundle, shard)
    _keep_inputs(flags, folder)
    problems = runner.score(
        dataset,
        segmenter,
        run,
        folder=folder,
        options=flags.options,
        restart=flags.restart,
        steps=Countdown(console),
    )
    return folder, problems


def _keep_inputs(flags: EvalFlags, folder: Path) -> None:
    """Refuse a folder in which the dataset's own file has the name of a result."""
    journal = _module("run.record_log")
    written = [folder / name for name in (journal.RECORDS, journal.RESULT, journal.REPORT)]
    instructions = [] if flags.instructions is None else [flags.instructions]
    check_outputs(written, [Path(flags.source), *instructions])


def _expect_answers(said: InstructionFile, dataset: Any, template: str) -> None:
    """Refuse a file that cannot answer for any sample: of another dataset or template.

    Raises:
        InputError: it has none of the instructions, for whatever pictures.
    """
    told = [template.replace("{expression}", one.expression) for one in dataset.samples]
    if said.instructions.isdisjoint(told):
        raise InputError(
            f"{one_line(said.name, limit=60)} has none of the {len(told)} instructions of "
            f"{dataset.name}, such as '{one_line(told[0], limit=60)}': make it with rism refine, "
            "of the same dataset and --template"
        )


def _load(flags: EvalFlags, refiner: Refiner | None, console: Console) -> Segmenter:
    console.status(f"loading {flags.bundle or 'mini'} ...")
    segmenter = Segmenter.from_bundle(
        flags.bundle,
        provider=flags.provider,
        device=flags.device,
        precision=flags.precision,
        engine=flags.engine,
        capture=flags.capture,
        threads=flags.threads,
        max_batch=flags.batch,
        template=flags.template,
        refiner=refiner,
        warn=console.detail,
    )
    console.clear()
    if segmenter.manifest.model.demonstrator and flags.source != "scenes":
        console.note(DEMONSTRATOR)
    console.detail(
        f"{segmenter.manifest.model.name} from {segmenter.bundle.path}, capture "
        f"{segmenter.capture}, provider {segmenter.provider}: {segmenter.provider_reason}"
    )
    return segmenter


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _folder(dataset: str, bundle: str, shard: tuple[int, int]) -> Path:
    """Name the folder of a run that was given none."""
    words = [dataset, bundle, *([] if shard[1] == 1 else [f"{shard[0]}-of-{shard[1]}"])]
    return Path("-".join(["eval", *(re.sub(r"[^\w+.]+", "-", word)[:60] for word in words)]))


def _table(result: Mapping[str, Any]) -> str:
    """Write the figures in percent, for people."""
    metrics = _module("metrics.iou").METRICS
    rows = {**result["metrics"], **result["groups"]}
    wide = max(len(one_line(name, limit=40)) for name in rows)
    widths = {metric: max(6, len(metric)) for metric in metrics}
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
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _complain(
    result: Mapping[str, Any], problems: Sequence[Any], folder: Path, console: Console
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


def _module(name: str) -> Any:
    return import_extra(f"rism.evaluation.{name}", command="eval", extra="eval")
