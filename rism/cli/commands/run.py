"""`rism run`: images in, masks out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from rism.cli.console import Console, UsageError
from rism.cli.flags import ImageFlags, QuietFlags, SegmenterFlags, argument, option
from rism.runtime.names import ENGINES_ALONE, EPSILON, DatasetFormatName

if TYPE_CHECKING:
    from rism.cli.delivery import SegmentedImage
    from rism.cli.inputs import InputImage, Inputs
    from rism.runtime.options import SegmentOptions
    from rism.runtime.prompt.refiner import Refiner
    from rism.runtime.segmenter import Segmenter

# From here on, graphs take turns where there is one image alone.
_LARGE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class RunFlags(ImageFlags, SegmenterFlags, QuietFlags):
    """The flags of `rism run`."""

    arguments: list[str] | None = argument(
        None,
        metavar="IMAGE|EXPRESSION",
        help="Images, folders of images, quoted patterns such as 'photos/*.jpg', or - for stdin; "
        "and what to find, one quoted text each. An existing file or folder is an image; a text "
        "that may be either is refused.",
    )
    output: str | None = option(
        None,
        "--output",
        "-o",
        help="FILE.png, FILE.json, FILE.jsonl, a folder (DIR/), or - for a PNG on stdout. Default: "
        "IMAGE.EXPRESSION.mask.png and .overlay.png in the current folder; with --format a folder "
        "of that name.",
    )
    image_list: Path | None = option(
        None,
        "--list",
        metavar="FILE",
        help="Images, and what to find in each: lines of PATH, a tab and expressions; or a .jsonl "
        'of {"image", "expressions", "id"}.',
    )
    dataset: DatasetFormatName | None = option(
        None,
        "--format",
        help="Write a dataset: COCO, YOLO (segmentation), LabelMe, CVAT for images, tasks of Label "
        "Studio, or a PNG of category numbers.",
    )
    rle: bool = option(
        False, help="Masks in the dataset pixel by pixel (RLE, or LabelMe's), not as polygons."
    )
    epsilon: float | None = option(
        None,
        min=0,
        max=1000,
        help=f"How far polygons may be from the outline of the mask, pixels. Default: {EPSILON}.",
    )
    names: Path | None = option(
        None,
        metavar="FILE",
        help="Categories of the dataset in their order, a line NAME or NAME: EXPRESSION each. "
        "Default: the expressions.",
    )
    resume: bool = option(
        False, help="Go on with the unfinished dataset or FILE.jsonl of an earlier run."
    )
    skip_existing: bool = option(False, help="Skip images whose files are there already.")
    on_error: Literal["skip", "stop"] = option(
        "skip", help="What to do about an image of several that cannot be read."
    )
    save: str | None = option(None, help="Images to write: mask,overlay,cutout,heatmap or all.")
    as_json: bool = option(
        False,
        "--json",
        help="Print the results as JSON at the end, with masks as COCO RLE; an interrupted "
        "run prints the results so far.",
    )
    json_lines: bool = option(
        False, "--jsonl", help="Print each result as a line of JSON when it is known."
    )
    model: str | None = option(
        None,
        help="A model of rism export, such as flux2-klein-4b, instead of a bundle. It is "
        "exported once to this user's cache (rism bundles), after a question if that takes "
        "gigabytes.",
    )
    yes: bool = option(False, "--yes", "-y", help="Export without that question.")
    refiner: str | None = option(
        None,
        metavar="MODULE:FUNCTION",
        help="A Python function that rewords each instruction for the image.",
    )
    cache: str | None = option(
        None,
        metavar="DIR",
        help="Keep text embeddings here; the text encoder is loaded only for new ones.",
    )
    workers: int | None = option(
        None,
        min=1,
        max=64,
        help="Images of a folder to work on at the same time; they share the threads. "
        "Default: one per thread, at most 4.",
    )


def run(flags: RunFlags, console: Console) -> None:
    """Segment what each EXPRESSION refers to in each IMAGE."""
    from rism.cli.delivery import deliver
    from rism.cli.file_names import slugs
    from rism.cli.run_plan import plan_inputs, plan_outputs, prepare, without_done

    if flags.model is not None and flags.bundle is not None:
        raise UsageError("--model and --bundle both say what to run, expected one of them")
    if flags.model is not None and flags.precision in ENGINES_ALONE:
        raise UsageError(
            f"--model exports fp32, bf16 or fp16; for {flags.precision} see rism build"
        )
    inputs, categories = plan_inputs(flags)
    names = dict(zip(categories.indices, slugs(list(categories.indices)), strict=True))
    dataset, destination = plan_outputs(flags, inputs, categories)
    for note in inputs.notes:
        console.note(f"note: {note}")
    inputs = without_done(flags, inputs, names, dataset, destination)
    prepare(destination, dataset, flags, inputs, names, console)
    workers = _workers(flags, len(inputs.images))
    segment = _segmenting(flags, inputs, workers, console) if inputs.images else None
    deliver(
        segment,
        inputs,
        destination,
        names,
        dataset=dataset,
        workers=workers,
        stop=flags.on_error == "stop",
        console=console,
    )


def _segmenting(
    flags: RunFlags, inputs: Inputs, workers: int, console: Console
) -> Callable[[InputImage], SegmentedImage]:
    """Load the bundle, warn of expressions that it cannot know, and return what finds them."""
    segmenter = _load(flags, workers, console, alone=len(inputs.images) == 1)
    reworded = flags.refiner is not None or flags.instructions is not None
    scope = segmenter.manifest.model.scope
    if scope is not None and not reworded:  # a refiner's words are known image by image
        template = flags.template or segmenter.manifest.prompt.template
        for text in dict.fromkeys(text for image in inputs.images for text in image.expressions):
            why = scope.unknown(text, template.replace("{expression}", text))
            if why is not None:
                console.note(f"warning: {why}")

    def segment(image: InputImage) -> SegmentedImage:
        return _segment(image, segmenter, flags.options, reworded=reworded)

    return segment


def _segment(
    image: InputImage, segmenter: Segmenter, options: SegmentOptions, *, reworded: bool
) -> SegmentedImage:
    """Find every expression in one image; threads may call this.

    Raises:
        ImageError: the image cannot be read or has no size that fits the model, or a refiner
            failed on it.
        InputError: an expression or an option that fits no image.
    """
    from rism.cli.delivery import ImageError, SegmentedImage
    from rism.runtime.errors import InputError
    from rism.runtime.image.loading import load_image

    try:
        start = perf_counter()
        pixels = load_image(image.open())
        pixels.flags.writeable = False  # the state keeps a reference
        took = (perf_counter() - start) * 1e3
        state = segmenter.set_image(pixels)
    except InputError as error:
        raise ImageError(str(error)) from error
    try:
        found = segmenter.segment(state, list(image.expressions), **options)
    except InputError as error:
        # Expressions and options are the same for every image; a refiner's words are not.
        if reworded:
            raise ImageError(str(error)) from error
        raise
    shared = {**state.timings_ms, "image": state.timings_ms.get("image", 0.0) + took}
    # Each expression has its part of the image's own time.
    own = {stage: milliseconds / len(found) for stage, milliseconds in shared.items()}
    results = [replace(each, timings_ms={**own, **each.timings_ms}) for each in found]
    return SegmentedImage(pixels, results)


def _workers(flags: RunFlags, images: int) -> int:
    """Return how many images are worked on at once: one with a refiner or a budget of memory.

    Raises:
        UsageError: several, with a refiner, which need not be thread-safe.
    """
    from rism.runtime.engines.cpu_threads import MOST_WORKERS, cpu_count

    if flags.refiner is not None:
        if flags.workers not in (None, 1):
            raise UsageError("--refiner works on one image at a time, expected --workers 1 or none")
        return 1
    if flags.memory is not None:
        return 1  # two would need the memory of both
    workers = flags.workers or min(MOST_WORKERS, flags.threads or cpu_count())
    return min(workers, images)


def _load(flags: RunFlags, workers: int, console: Console, *, alone: bool) -> Segmenter:
    from rism.cli.kept_bundles import exported_bundle, mark_used
    from rism.cli.result_format import DEMONSTRATOR

    refiner = _refiner(flags, console)
    bundle: str | Path | None = flags.bundle
    if flags.model is not None:
        bundle = exported_bundle(
            flags.model,
            precision=flags.precision,
            capture=flags.capture,
            yes=flags.yes,
            console=console,
        )
    if alone and flags.memory is None and _is_large(bundle):
        flags = replace(flags, memory="turns")  # no graph is used again
    segmenter = flags.load(console, refiner, bundle=bundle, cache_dir=flags.cache, workers=workers)
    mark_used(segmenter.bundle.path)
    if segmenter.manifest.model.demonstrator:
        console.note(DEMONSTRATOR)
    return segmenter


def _is_large(bundle: str | Path | None) -> bool:
    """Whether a bundle's files would take a good part of a small machine's memory."""
    from rism.runtime.bundle.reader import Bundle, resolve_bundle

    files = Bundle.open(resolve_bundle(bundle), verify=False).manifest.files
    return sum(file.size for file in files.values()) > _LARGE_BYTES


def _refiner(flags: RunFlags, console: Console) -> Refiner | None:
    from rism.cli.refiner import find_refiner
    from rism.runtime.prompt.instruction_file import InstructionFile

    if flags.instructions is None:
        return None if flags.refiner is None else find_refiner(flags.refiner)
    if flags.refiner is not None:
        raise UsageError("--instructions and --refiner both reword, expected one of them")
    found = InstructionFile.open(flags.instructions)
    console.detail(f"{len(found)} instructions of {found.origin.model} ({found.origin.revision})")
    return found
