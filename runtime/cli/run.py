"""`rism run`: images in, masks out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rism.runtime.atomic_write import write_atomically
from rism.runtime.cli.answer import Answer, PictureError, Question
from rism.runtime.cli.console import Console, ReaderGoneError, UsageError, write_stdout
from rism.runtime.cli.kept_bundles import exported_bundle, mark_used
from rism.runtime.cli.names import as_text, slugs
from rism.runtime.cli.outputs import Destination, check_outputs, choose_destination
from rism.runtime.cli.refiner import find_refiner
from rism.runtime.cli.report import DEMONSTRATOR, failure_record, json_line, json_text
from rism.runtime.cli.sources import Source, Sources, find_sources, sort_arguments
from rism.runtime.engines.cpu_threads import MOST_WORKERS, cpu_count
from rism.runtime.errors import RismError, one_line
from rism.runtime.image.loading import pixel_count
from rism.runtime.options import SegmentOptions
from rism.runtime.pipeline import in_order
from rism.runtime.prompt.instruction_file import InstructionFile
from rism.runtime.prompt.refiner import Refiner
from rism.runtime.segmenter import Segmenter

__all__ = ["RunOptions", "run_pictures"]

# Some 12 bytes each while an image is drawn, 20 with a heat map.
_MOST_PIXELS_AT_ONCE = 32_000_000


@dataclass(frozen=True)
class RunOptions:
    """The flags of `rism run`."""

    arguments: tuple[str, ...]
    expressions: tuple[str, ...] = ()
    recursive: bool = False
    output: str | None = None
    save: str | None = None
    as_json: bool = False
    json_lines: bool = False
    bundle: str | None = None
    model: str | None = None
    yes: bool = False
    provider: str = "auto"
    device: int = 0
    precision: str | None = None
    engine: str | None = None
    capture: str | None = None
    choices: SegmentOptions = field(default_factory=SegmentOptions)
    template: str | None = None
    refiner: str | None = None
    instructions: Path | None = None
    cache: str | None = None
    threads: int | None = None
    workers: int | None = None


def run_pictures(options: RunOptions, console: Console) -> None:
    """Segment every image, write what was asked for.

    Of several images the unreadable ones, and those that a refiner fails on or a file of
    instructions lacks, are reported and counted, the others still written.

    Raises:
        UsageError: arguments or flags that do not go together.
        RismError: the only image, the bundle, the engine or the output place failed, or
            some of several images did.
    """
    if options.model is not None and options.bundle is not None:
        raise UsageError("--model and --bundle both say what to run, expected one of them")
    if options.model is not None and options.precision == "fp8":
        raise UsageError("--model exports fp32, bf16 or fp16; for fp8 see rism build")
    given, texts = sort_arguments(options.arguments, options.expressions)
    expressions = tuple(as_text(text) for text in texts)
    sources = find_sources(given, recursive=options.recursive)
    names = slugs(expressions)
    destination = choose_destination(
        options.output,
        save=options.save,
        as_json=options.as_json,
        json_lines=options.json_lines,
        images=len(sources.images),
        slugs=names,
        from_folder=sources.from_folder,
    )
    for note in sources.notes:
        console.note(f"note: {note}")
    _prepare(destination, options, sources, names, console)
    workers = _workers(options, len(sources.images))
    segmenter = _load(options, console, workers)
    reworded = options.refiner is not None or options.instructions is not None
    scope = segmenter.manifest.model.scope
    if scope is not None and not reworded:  # a refiner's words are known image by image
        template = options.template or segmenter.manifest.prompt.template
        for text in expressions:
            why = scope.unknown(text, template.replace("{expression}", text))
            if why is not None:
                console.note(f"warning: {why}")
    question = Question(
        segmenter, expressions, options.choices, reworded, destination, tuple(names)
    )
    _answer_all(question, sources, workers, console)


def _prepare(
    destination: Destination,
    options: RunOptions,
    sources: Sources,
    names: Sequence[str],
    console: Console,
) -> None:
    """Look at every file of the run before anything is read or written."""
    files = destination.paths([source.stem for source in sources.images], names)
    inputs: list[Path | int] = [*sources.files]
    inputs += [] if options.instructions is None else [options.instructions]
    if any(source.path is None for source in sources.images):
        inputs.append(0)
    there = check_outputs(files, inputs)
    check_outputs([Path("/dev/stdout")], inputs)  # ... >> IMAGE
    if there and destination.folder is not None:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        console.note(f"note: {one_line(there[0])}{more} of an earlier run will be replaced")
    destination.prepare(files)


def _answer_all(question: Question, sources: Sources, workers: int, console: Console) -> None:
    """Ask about one image after the other, and deliver.

    However it ends, a JSON of several images has what was found until then, and what was not.
    """
    images, destination = sources.images, question.destination
    answers = in_order(
        question.answer, images, workers=workers, weigh=_pixels, most=_MOST_PIXELS_AT_ONCE
    )
    records: list[dict[str, Any]] = []
    done = failed = 0
    try:
        with closing(answers):
            for source, answer in zip(images, answers, strict=True):
                if sources.several:
                    console.progress(done, len(images), source.label)
                try:
                    found = answer()
                except PictureError as error:
                    if not sources.several:
                        raise
                    console.error(f"{source.label}: {error}")
                    _record([failure_record(source.label, error)], records, destination)
                    failed += 1
                else:
                    _record(_deliver(found, destination, console), records, destination)
                done += 1
    except BaseException as error:
        if sources.several:
            _deliver_what_there_is(records, destination, images[done:], error, console)
        raise
    _deliver_json(records, destination)
    if failed:
        raise RismError(f"{failed} of {len(images)} images failed, the others are written")


def _record(
    found: Sequence[dict[str, Any]], records: list[dict[str, Any]], destination: Destination
) -> None:
    """Keep entries of the JSON for the end, or print them."""
    if destination.json_lines:
        write_stdout("".join(map(json_line, found)))
    if destination.json_file is not None or (destination.as_json and not destination.json_lines):
        records += found


def _deliver_what_there_is(
    records: list[dict[str, Any]],
    destination: Destination,
    left: Sequence[Source],
    error: BaseException,
    console: Console,
) -> None:
    """Write the JSON of a run that ends too early; its last entry says what is missing."""
    why = str(error) or "interrupted"
    more = f"; {len(left) - 1} more images were not looked at" if len(left) > 1 else ""
    try:
        if left:
            _record([failure_record(left[0].label, f"{why}{more}")], records, destination)
        _deliver_json(records, destination)
    except RismError as second:
        if not isinstance(second, ReaderGoneError):
            console.error(second)


def _workers(options: RunOptions, images: int) -> int:
    """Return how many images are worked on at once.

    Raises:
        UsageError: several, with a refiner: nobody promised that it can be asked at once.
    """
    if options.refiner is not None:
        if options.workers not in (None, 1):
            raise UsageError(
                "--refiner is asked about one image at a time, expected --workers 1 or none"
            )
        return 1
    workers = options.workers or min(MOST_WORKERS, options.threads or cpu_count())
    return min(workers, images)


def _pixels(source: Source) -> int:
    return 0 if source.path is None else pixel_count(source.path)


def _load(options: RunOptions, console: Console, workers: int) -> Segmenter:
    refiner = _refiner(options, console)
    bundle: str | Path | None = options.bundle
    if options.model is not None:
        bundle = exported_bundle(
            options.model,
            precision=options.precision,
            capture=options.capture,
            yes=options.yes,
            console=console,
        )
    console.status(f"loading {bundle or 'mini'} ...")
    segmenter = Segmenter.from_bundle(
        bundle,
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
    mark_used(segmenter.bundle.path)
    manifest = segmenter.manifest
    if manifest.model.demonstrator:
        console.note(DEMONSTRATOR)
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
    """Write the images of one source, print its lines, and return its JSON entries."""
    stdout_is_data = destination.to_stdout or destination.json_stdout
    if answers[0].warning is not None:
        console.note(f"warning: {answers[0].warning}")
    for answer in answers:
        for path, data in answer.files:
            if path is None:
                write_stdout(data)
            else:
                write_atomically(path, data)
        if not (stdout_is_data or console.quiet or sys.stdout is None):
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
    if destination.json_stdout and not destination.json_lines:
        write_stdout(text)
