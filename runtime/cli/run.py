"""`rism run`: pictures in, masks out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rism.runtime.atomic import write_atomically
from rism.runtime.choices import Choices
from rism.runtime.cli.answer import Answer, PictureError, Question
from rism.runtime.cli.console import Console, UsageError, write_stdout
from rism.runtime.cli.outputs import Destination, choose_destination
from rism.runtime.cli.refiner import find_refiner
from rism.runtime.cli.report import failure_record, json_text
from rism.runtime.cli.sources import Source, find_sources
from rism.runtime.errors import RismError
from rism.runtime.images import pixel_count
from rism.runtime.instructions import InstructionFile
from rism.runtime.pipeline import in_order
from rism.runtime.refine import Refiner
from rism.runtime.segmenter import Segmenter
from rism.runtime.threads import MOST_WORKERS, cpu_count

__all__ = ["RunOptions", "run_pictures"]

_DEMONSTRATOR = (
    "note: this is the built-in demonstrator, it knows drawn shapes only; for photographs: "
    "rism export --model step1x (or flux2-klein-4b) -o DIR, then add --bundle DIR"
)

# Some 12 bytes each while a picture is drawn, 20 with a heat map.
_MOST_PIXELS_AT_ONCE = 32_000_000


@dataclass(frozen=True)
class RunOptions:
    """The flags of `rism run`."""

    image: str
    expressions: tuple[str, ...]
    output: str | None = None
    save: str | None = None
    as_json: bool = False
    bundle: str | None = None
    provider: str = "auto"
    device: int = 0
    precision: str | None = None
    engine: str | None = None
    capture: str | None = None
    choices: Choices = field(default_factory=Choices)
    template: str | None = None
    refiner: str | None = None
    instructions: Path | None = None
    cache: str | None = None
    threads: int | None = None
    workers: int | None = None


def run_pictures(options: RunOptions, console: Console) -> None:
    """Segment every picture, write what was asked for.

    A folder's unreadable pictures, and those that a refiner fails on or a file of instructions
    lacks, are reported and counted, the others still written.

    Raises:
        UsageError: flags that do not go together.
        RismError: the only picture, the bundle, the engine or the output place failed, or
            some pictures of a folder did.
    """
    sources = find_sources(options.image)
    from_folder = Path(options.image).is_dir() and sources[0].path is not None
    destination = choose_destination(
        options.output,
        save=options.save,
        as_json=options.as_json,
        expressions=len(options.expressions),
        from_folder=from_folder,
    )
    destination.prepare()
    workers = _workers(options, len(sources))
    segmenter = _load(options, console, workers)
    reworded = options.refiner is not None or options.instructions is not None
    question = Question(segmenter, options.expressions, options.choices, reworded, destination)
    answers = in_order(
        question.answer, sources, workers=workers, weigh=_pixels, most=_MOST_PIXELS_AT_ONCE
    )
    records: list[dict[str, Any]] = []
    failed = 0
    with closing(answers):
        for number, (source, answer) in enumerate(zip(sources, answers, strict=True)):
            if from_folder:
                console.progress(number, len(sources), source.label)
            try:
                found = answer()
            except PictureError as error:
                if not from_folder:
                    raise
                console.error(f"{source.label}: {error}")
                if destination.as_json:
                    records.append(failure_record(source.label, error))
                failed += 1
                continue
            records += _deliver(found, destination, console)
    _deliver_json(records, destination)
    if failed:
        raise RismError(f"{failed} of {len(sources)} pictures failed, the others are written")


def _workers(options: RunOptions, pictures: int) -> int:
    """Return how many pictures are worked on at once.

    Raises:
        UsageError: several, with a refiner: nobody promised that it can be asked at once.
    """
    if options.refiner is not None:
        if options.workers not in (None, 1):
            raise UsageError(
                "--refiner is asked about one picture at a time, expected --workers 1 or none"
            )
        return 1
    workers = options.workers or min(MOST_WORKERS, options.threads or cpu_count())
    return min(workers, pictures)


def _pixels(source: Source) -> int:
    return 0 if source.path is None else pixel_count(source.path)


def _load(options: RunOptions, console: Console, workers: int) -> Segmenter:
    refiner = _refiner(options, console)
    if options.bundle is None:
        console.note(_DEMONSTRATOR)
    console.status(f"loading {options.bundle or 'mini'} ...")
    segmenter = Segmenter.from_bundle(
        options.bundle,
        provider=options.provider,
        device=options.device,
        precision=options.precision,
        engine=options.engine,
        capture=options.capture,
        threads=options.threads,
        template=options.template,
        refiner=refiner,
        cache_dir=options.cache,
        warn=console.detail,
        workers=workers,
    )
    console.clear()
    manifest = segmenter.manifest
    console.detail(
        f"{manifest.model.name} ({manifest.model.licence}) from {segmenter.bundle.path}, "
        f"capture {segmenter.capture}, provider {segmenter.provider}: {segmenter.provider_reason}"
    )
    return segmenter


def _refiner(options: RunOptions, console: Console) -> Refiner | None:
    if options.instructions is None:
        return None if options.refiner is None else find_refiner(options.refiner)
    if options.refiner is not None:
        raise UsageError("--instructions and --refiner both reword, expected one of them")
    found = InstructionFile.open(options.instructions)
    console.detail(f"{len(found)} instructions of {found.origin.model} ({found.origin.revision})")
    return found


def _deliver(
    answers: Sequence[Answer], destination: Destination, console: Console
) -> list[dict[str, Any]]:
    """Write the pictures of one source, print its lines, and return its JSON entries."""
    stdout_is_data = destination.to_stdout or destination.json_stdout
    for answer in answers:
        for path, data in answer.files:
            if path is None:
                write_stdout(data)
            else:
                write_atomically(path, data)
        if not (stdout_is_data or console.quiet):
            console.clear()
            write_stdout(answer.line + "\n")
        console.detail(answer.detail)
    return [answer.record for answer in answers if answer.record is not None]


def _deliver_json(records: Sequence[dict[str, Any]], destination: Destination) -> None:
    if not destination.as_json:
        return
    text = json_text(records)
    if destination.json_file is not None:
        write_atomically(destination.json_file, text.encode())
    if destination.json_stdout:
        write_stdout(text)
