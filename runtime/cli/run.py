"""`rism run`: pictures in, masks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from rism.runtime.atomic import write_atomically
from rism.runtime.cli.console import Console, UsageError, write_stdout
from rism.runtime.cli.outputs import Destination, choose_destination, slugs
from rism.runtime.cli.refiner import find_refiner
from rism.runtime.cli.report import failure_record, json_text, result_record, summary_line
from rism.runtime.cli.sources import Source, find_sources
from rism.runtime.errors import InputError, RismError
from rism.runtime.images import load_image
from rism.runtime.instructions import InstructionFile
from rism.runtime.refine import Refiner
from rism.runtime.render import Uint8, encode_png, render
from rism.runtime.result import Segmentation
from rism.runtime.segmenter import Segmenter

__all__ = ["RunOptions", "run_pictures"]

_DEMONSTRATOR = (
    "note: this is the built-in demonstrator, it knows drawn shapes only; for photographs: "
    "rism export --model step1x (or flux2-klein-4b) -o DIR, then add --bundle DIR"
)


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
    tau: float | None = None
    tokens: str = "all"
    template: str | None = None
    refiner: str | None = None
    instructions: Path | None = None
    cache: str | None = None
    threads: int | None = None


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
    segmenter = _load(options, console)
    records: list[dict[str, Any]] = []
    failed = 0
    for number, source in enumerate(sources):
        if from_folder:
            console.progress(number, len(sources), source.label)
        encoded = False
        try:
            pixels, timings = _read(source)
            state = segmenter.set_image(pixels)
            encoded = True
            found = segmenter.segment(
                state, options.expressions, tau=options.tau, prompt_weights=options.tokens
            )
        except InputError as error:
            # Expressions and tau are the same for every picture: what they raise ends the run.
            # What a refiner says of a picture is not.
            refined = options.refiner is not None or options.instructions is not None
            if not from_folder or (encoded and not refined):
                raise
            console.error(f"{source.label}: {error}")
            records.append(failure_record(source.label, error))
            failed += 1
            continue
        shared = {**state.timings_ms, "image": state.timings_ms.get("image", 0.0) + timings}
        results = [_with_timings(result, shared, len(found)) for result in found]
        records += _deliver(source, pixels, results, destination, console)
    _deliver_json(records, destination)
    if failed:
        raise RismError(f"{failed} of {len(sources)} pictures failed, the others are written")


def _load(options: RunOptions, console: Console) -> Segmenter:
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


def _read(source: Source) -> tuple[Uint8, float]:
    """Decode one picture and say how many milliseconds it took."""
    start = perf_counter()
    pixels = load_image(source.open())
    return pixels, (perf_counter() - start) * 1e3


def _with_timings(result: Segmentation, shared: dict[str, float], share: int) -> Segmentation:
    """Give each expression its part of the picture's own time."""
    own = {stage: milliseconds / share for stage, milliseconds in shared.items()}
    return replace(result, timings_ms={**own, **result.timings_ms})


def _deliver(
    source: Source,
    pixels: Uint8,
    results: Sequence[Segmentation],
    destination: Destination,
    console: Console,
) -> list[dict[str, Any]]:
    """Write the pictures of one source, print its lines, and return its JSON entries."""
    records = []
    names = slugs([result.expression for result in results])
    stdout_is_data = destination.to_stdout or destination.json_stdout
    for result, slug in zip(results, names, strict=True):
        written = _write_pictures(source, pixels, result, slug, destination)
        records.append(result_record(source.label, result, written))
        if not (stdout_is_data or console.quiet):
            console.clear()
            write_stdout(summary_line(source.label, result, written) + "\n")
        stages = ", ".join(f"{name} {ms:.1f}" for name, ms in result.timings_ms.items())
        console.detail(f'{source.label}: "{result.instruction}", {stages} ms')
    return records


def _write_pictures(
    source: Source, pixels: Uint8, result: Segmentation, slug: str, destination: Destination
) -> list[Path]:
    written = []
    for kind in destination.kinds:
        data = encode_png(render(result, pixels, kind))
        if destination.to_stdout:
            write_stdout(data)
            continue
        path = destination.path(source.stem, slug, kind)
        write_atomically(path, data)
        written.append(path)
    return written


def _deliver_json(records: Sequence[dict[str, Any]], destination: Destination) -> None:
    if destination.json_file is None and not destination.json_stdout:
        return
    text = json_text(records)
    if destination.json_file is not None:
        write_atomically(destination.json_file, text.encode())
    if destination.json_stdout:
        write_stdout(text)
