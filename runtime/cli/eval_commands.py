"""The flags of `rism eval`; app.py registers it. Like there, only typer is imported."""

from pathlib import Path
from typing import Annotated

import typer

from rism.runtime.cli.flags import (
    BUNDLE_HELP,
    Always,
    Capture,
    Confidence,
    Device,
    EngineName,
    EnginePrecision,
    GtMerge,
    Instances,
    Magnets,
    Paper,
    Quiet,
    RunProvider,
    SceneKind,
    Sinks,
    SpatialPrior,
    SplitBy,
    Tau,
    Template,
    Threads,
    Tokens,
    UpsampleChoice,
    Verbose,
    Wording,
    expecting,
)

__all__ = ["evaluate", "fit_confidence"]


def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="refcoco, refcoco+, refcocog, scenes, FILE.jsonl or FILE.parquet.",
        ),
    ],
    shards: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR", help="With --merge: the shards.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the dataset's files are.")
    ] = None,
    split_by: Annotated[
        SplitBy | None, typer.Option(help="Left out: unc, of refcocog umd.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="val, testA, testB or test, left out val; of scenes tuning or test."),
    ] = None,
    gt_merge: Annotated[
        GtMerge,
        typer.Option(help="Several polygons: as the public evaluators do, or all."),
    ] = GtMerge.legacy,
    wording: Annotated[
        Wording, typer.Option(help="Sentences as people typed them, or as REFER cleaned them.")
    ] = Wording.raw,
    kind: Annotated[SceneKind, typer.Option(help="Which scenes.")] = SceneKind.plain,
    count: Annotated[int | None, typer.Option(min=1, help="Scenes. Left out: 500.")] = None,
    offset: Annotated[int, typer.Option(min=0, help="Number of the first scene.")] = 0,
    seed: Annotated[
        int, typer.Option(min=0, help="Other scenes of that kind and split; 0: the published ones.")
    ] = 0,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="ROLE=COLUMN,...",
            help="Of a FILE.parquet of your own: image, expression, mask and, if wanted, id.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first samples.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder. Left out: named after dataset and model."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over where the folder has records.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Score the I-th of N parts of the pictures.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Put the folders of all shards into one result.")
    ] = False,
    bundle: Annotated[
        str | None,
        typer.Option(help=BUNDLE_HELP),
    ] = None,
    provider: RunProvider = "auto",
    device: Device = 0,
    precision: Annotated[
        EnginePrecision | None,
        typer.Option(help="What the graphs are to compute in. Left out: any that fits."),
    ] = None,
    engine: EngineName = None,
    capture: Annotated[
        Capture | None, typer.Option(help="Which transformer graph; the bundle has a default.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Expressions of a run.")] = 8,
    threads: Threads = None,
    tau: Tau = None,
    tokens: Annotated[
        Tokens | None, typer.Option(help="Which tokens of the prompt count. Left out: all.")
    ] = None,
    template: Template = None,
    instructions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Say it in the words of a file that rism refine wrote."),
    ] = None,
    magnets: Magnets = None,
    sinks: Sinks = False,
    upsample: UpsampleChoice = None,
    spatial_prior: SpatialPrior = None,
    instances: Instances = None,
    confidence: Confidence = None,
    always: Always = False,
    paper: Paper = False,
    maps: Annotated[
        bool, typer.Option("--maps", help="Score CAM > 0.5 and RAM > 0.5 too.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a bundle on a dataset: records, result.json and a report page."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.eval import EvalFlags, evaluate_bundle
    from rism.runtime.options import drop_unset

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = EvalFlags(
            source=source,
            shards=tuple(shards or ()),
            root=root,
            split_by=None if split_by is None else split_by.value,
            split=split,
            gt_merge=gt_merge.value,
            wording=wording.value,
            kind=kind.value,
            count=count,
            offset=offset,
            seed=seed,
            columns=columns,
            limit=limit,
            output=output,
            restart=restart,
            shard=shard,
            merge=merge,
            bundle=bundle,
            provider=provider,
            device=device,
            precision=None if precision is None else precision.value,
            engine=engine,
            capture=None if capture is None else capture.value,
            batch=batch,
            threads=threads,
            template=template,
            instructions=instructions,
            maps=maps,
            # What `Segmenter.segment` takes: an option is a flag above and a word here.
            options=dict(
                drop_unset(
                    tau=tau,
                    prompt_weights=None if tokens is None else tokens.value,
                    magnets=magnets,
                    sinks=sinks or None,
                    upsample=None if upsample is None else upsample.value,
                    spatial_prior=spatial_prior,
                    instances=instances,
                    confidence=confidence,
                    always=always or None,
                    paper=paper or None,
                )
            ),
        )
        evaluate_bundle(flags, console)


def fit_confidence(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A run of rism eval over things that are there and that are not."
        ),
    ],
    bundle: Annotated[str, typer.Option(help="The bundle that was scored, to store it in.")],
    lost: Annotated[
        float,
        typer.Option(
            callback=expecting("0 to below 0.5, such as 0.01", lambda share: 0 <= share < 0.5),
            help="Share of what is there that may be called absent.",
        ),
    ] = 0.01,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be stored.")] = False,
    allow_test_split: Annotated[
        bool, typer.Option("--allow-test-split", help="Fit to a test split all the same.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Teach a bundle when to answer that nothing in the picture fits."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.fit_confidence import fit_bundle

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        fit_bundle(
            run,
            bundle,
            console,
            lost=lost,
            dry_run=dry_run,
            allow_test_split=allow_test_split,
        )
