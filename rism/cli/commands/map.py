"""`rism map`: millions of images, on Ray."""

from __future__ import annotations

from dataclasses import dataclass

from rism.cli.console import Console, Countdown, UsageError
from rism.cli.flags import QuietFlags, SegmenterFlags, argument, option
from rism.runtime.distribution import needs_extra


@dataclass(frozen=True, kw_only=True)
class MapFlags(SegmenterFlags, QuietFlags):
    """The flags of `rism map`."""

    source: str = argument(
        ...,
        metavar="SOURCE",
        help="Parquet files (columns id, image, expressions), a folder of images, JSON lines or "
        "WebDataset tars: a file, a folder, or a URL of a store that pyarrow opens.",
    )
    output: str = option(
        ...,
        "--output",
        "-o",
        metavar="DEST",
        help="Folder or URL for parquet files with a row for each id and expression.",
    )
    expressions: list[str] | None = option(
        None,
        "--expression",
        "-e",
        metavar="TEXT",
        help="What to find in every image; repeatable. Default: each row's own expressions.",
    )
    root: str | None = option(
        None,
        metavar="URI",
        help="Where images that rows name by path or URL are; none outside is opened. Default: "
        "the folder of SOURCE.",
    )
    resume: bool = option(False, help="Continue the run that DEST holds.")
    address: str | None = option(
        None,
        metavar="HOST:PORT",
        help="A Ray cluster. Default: a Ray of this process, on this machine.",
    )
    actors: int | None = option(
        None,
        min=1,
        max=100_000,
        help="Processes that hold the model. Default: one on each GPU, or as many as the cores "
        "allow.",
    )
    threads: int | None = option(
        None,
        min=1,
        help="CPU threads of each actor. Default: 1, for a bundle above 1 GiB all of a machine.",
    )
    part: int | None = option(
        None,
        min=1,
        max=1_000_000,
        help="Images in a file of DEST. Default: a two-hundredth of all, 32 to 2048.",
    )
    # Ray gives each actor its GPU, and a file of instructions is on this machine only.
    device: int = 0
    instructions: None = None


def map_images(flags: MapFlags, console: Console) -> None:
    """Segment the images of SOURCE on Ray, and write the results as parquet."""
    with needs_extra("batch", "map"):
        from rism.batch.pipeline import BatchRun, run_batch
    from rism.cli.file_names import as_text

    if flags.expressions is not None and not all(each.strip() for each in flags.expressions):
        raise UsageError("--expression is empty, expected what to find")
    names = ("provider", "precision", "capture", "template", "engine", "memory")
    run = BatchRun(
        source=flags.source,
        destination=flags.output,
        expressions=None if flags.expressions is None else tuple(map(as_text, flags.expressions)),
        root=flags.root,
        bundle=flags.bundle,
        options=flags.options,
        settings={name: getattr(flags, name) for name in names},
        threads=flags.threads,
        actors=flags.actors,
        part_images=flags.part,
        resume=flags.resume,
        address=flags.address,
    )
    countdown = Countdown(console)

    def progress(done: int, total: int | None, rate: float) -> None:
        if total is None:
            console.status(f"{done} images, {rate:.1f} images/s")
        else:
            countdown.step(done, total, f"{rate:.1f} images/s")

    console.status("looking at SOURCE and DEST ...")
    summary = run_batch(run, progress)
    console.clear()
    if summary.skipped:
        console.note(f"{summary.skipped} images were there before")
    if not summary.parts:
        console.note("nothing is left to do")
        return
    ran = f"{', '.join(summary.providers)} in {', '.join(summary.precisions)}"
    console.note(
        f"{summary.images} images, {summary.rows} rows ({summary.errors} with an error) in "
        f"{summary.parts} files, {summary.seconds:.1f} s, {summary.rows / summary.seconds:.1f} "
        f"rows/s on {ran}"
    )
    stages = ", ".join(f"{name} {rate:.1f}" for name, rate in summary.rates.items())
    console.note(f"rows/s by stage: {stages}; the slowest is {summary.slowest}")
