"""The flags of `rism ablate`.

app.py registers it; like there, only typer is imported.
"""

from pathlib import Path
from typing import Annotated

import typer

from rism.runtime.cli.flags import (
    ExportPrecision,
    GtMerge,
    Quiet,
    SceneKind,
    SplitBy,
    Tau,
    Threads,
    Verbose,
    Wording,
    in_utf_8,
)

__all__ = ["ablate"]


def ablate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="refcoco, refcoco+, refcocog, scenes, FILE.jsonl or FILE.parquet.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A folder; a run that was cut off goes on in its folder."
        ),
    ],
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the dataset's files are.")
    ] = None,
    split_by: Annotated[
        SplitBy | None, typer.Option(help="Left out: unc, of refcocog umd.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="val, testA, testB or test; of scenes tuning or test. Left out: val."),
    ] = None,
    gt_merge: Annotated[
        GtMerge, typer.Option(help="Several polygons: as the public evaluators do, or all.")
    ] = GtMerge.legacy,
    wording: Annotated[
        Wording, typer.Option(help="Sentences as people typed them, or as REFER cleaned them.")
    ] = Wording.raw,
    kind: Annotated[SceneKind, typer.Option(help="Which scenes.")] = SceneKind.plain,
    count: Annotated[
        int | None, typer.Option("--count", "--limit", min=1, help="The first so many samples.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH", help="A checkpoint, as rism export takes them: weights, no bundle."
        ),
    ] = "mini",
    precision: Annotated[
        ExportPrecision | None, typer.Option(help="Of the arithmetic. Left out: the model's own.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Of the transformer, as PyTorch names it: cpu, cuda, cuda:1.")
    ] = "cpu",
    text_device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Of the text encoder. Left out: the same.")
    ] = None,
    size_level: Annotated[
        int | None,
        typer.Option(min=8, max=8192, help="Bring pictures to about this many pixels squared."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(callback=in_utf_8, help="The instruction, with {expression} in it."),
    ] = None,
    instructions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Say it in the words of a file that rism refine wrote."),
    ] = None,
    tau: Tau = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=9999, help="Of the denoising. Left out: as many as published."),
    ] = None,
    timesteps: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Steps to capture, such as 0,5,10. 0 always is."),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Whose features: 0,10,20 or 0-7. Left out: all."),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Of the features: mmsa,adaln,block. Left out: all."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub.")] = False,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Repeat the paper's ablations on SOURCE: tables 2 and 3, figures 3, 4 and 5."""
    from rism.runtime.cli.ablate import AblateFlags, ablate_model
    from rism.runtime.cli.console import Console

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = AblateFlags(
            source=source,
            output=output,
            root=root,
            split_by=None if split_by is None else split_by.value,
            split=split,
            gt_merge=gt_merge.value,
            wording=wording.value,
            limit=count,
            kind=kind.value,
            model=model,
            precision=None if precision is None else precision.value,
            device=device,
            text_device=text_device,
            size_level=size_level,
            template=template,
            instructions=instructions,
            tau=tau,
            steps=steps,
            timesteps=timesteps,
            blocks=blocks,
            sites=sites,
            revision=revision,
            offline=offline,
            threads=threads,
        )
        ablate_model(flags, console)
