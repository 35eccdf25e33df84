"""The flags of `rism export` and `rism refine`, which read a checkpoint.

app.py registers them; like there, only typer is imported.
"""

from pathlib import Path
from typing import Annotated

import typer

from rism.runtime.cli.flags import (
    ExportPrecision,
    Expressions,
    Parity,
    Provider,
    Quiet,
    Recursive,
    RefinePrecision,
    SceneKind,
    SplitBy,
    Verbose,
    Wording,
    in_utf_8,
)

__all__ = ["export", "refine"]


def export(
    model: Annotated[
        str,
        typer.Option(
            help="mini, step1x, step1x-v1.1, step1x-v1.2, flux2-klein-4b, flux2-klein-9b, "
            "flux2-klein-base-4b, flux2-klein-base-9b, a folder, a .safetensors file, a hub id."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle folder to write.")],
    precision: Annotated[
        ExportPrecision | None,
        typer.Option(help="What the graphs compute in. Left out: as the model is published."),
    ] = None,
    capture: Annotated[
        str,
        typer.Option(help="Transformer graphs: vectors,matrices,scores. The first is the default."),
    ] = "vectors",
    size_level: Annotated[
        int | None,
        typer.Option(
            min=8,
            max=8192,
            help="Bring every picture to about N x N pixels, as the paper does. Left out: "
            "shrink only what is larger than the model takes.",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Graphs of fixed sizes, WIDTHxHEIGHT,...  Left out: one for any size."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(callback=in_utf_8, help="The instruction. Left out: 'remove {expression}'."),
    ] = None,
    vision_id: Annotated[
        bool | None,
        typer.Option(
            "--vision-id/--no-vision-id",
            help="Step1X-Edit: 'Picture 1: ' before the picture in the prompt. Left out: as its "
            "version's release has it.",
        ),
    ] = None,
    feature_site: Annotated[
        str, typer.Option(help="Where features are read: mmsa, adaln or block.")
    ] = "mmsa",
    token_attention: Annotated[
        bool, typer.Option("--token-attention", help="Also output attention per prompt token.")
    ] = False,
    parity: Annotated[
        Parity,
        typer.Option(help="Compare the whole model with PyTorch, or one block of each kind."),
    ] = Parity.auto,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit of the hub repository.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what is already on this disk.")
    ] = False,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET[:PRECISION]",
            help="Then build engines: tensorrt-rtx, tensorrt. Repeatable; see rism build.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be read, written and needed; without PyTorch, what is known.",
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a bundle from a checkpoint, and prove that it computes the same."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.export import ExportFlags, export_model

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = ExportFlags(
            model=model,
            output=output,
            precision=None if precision is None else precision.value,
            capture=capture,
            size_level=size_level,
            sizes=sizes,
            template=template,
            vision_id=vision_id,
            feature_site=feature_site,
            token_attention=token_attention,
            parity=parity.value,
            revision=revision,
            offline=offline,
            dry_run=dry_run,
            engines=tuple(engine or ()),
        )
        export_model(flags, console)


def refine(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE|DATASET",
            help="An image, or a folder of them; or, as for rism eval, refcoco, refcoco+, "
            "refcocog, scenes, FILE.jsonl or FILE.parquet.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="step1x, step1x-v1.1, step1x-v1.2, a folder with its Qwen2.5-VL, a hub id."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The JSON file to write; what it has already is kept."),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXPRESSION",
            help="What is to be found, one quoted text each; a dataset has its own. What is "
            "there is one more image, as for rism run.",
        ),
    ] = None,
    expression: Expressions = None,
    recursive: Recursive = False,
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
    wording: Annotated[
        Wording, typer.Option(help="Sentences as people typed them, or as REFER cleaned them.")
    ] = Wording.raw,
    kind: Annotated[SceneKind, typer.Option(help="Which scenes.")] = SceneKind.plain,
    count: Annotated[int | None, typer.Option(min=1, help="Scenes. Left out: 500.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first samples.")] = None,
    template: Annotated[
        str | None,
        typer.Option(callback=in_utf_8, help="The instruction. Left out: 'remove {expression}'."),
    ] = None,
    precision: Annotated[
        RefinePrecision | None,
        typer.Option(help="What the model computes in. Left out: as it is published."),
    ] = None,
    provider: Annotated[
        Provider, typer.Option(help="What runs the model; auto takes CUDA where it is.")
    ] = Provider.auto,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=2048, help="Answers are cut there.")
    ] = 128,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit of the hub repository.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what is already on this disk.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Have a model reword instructions after a look: for each EXPRESSION, or a DATASET's own."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.refine import RefineFlags, refine_to_file

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = RefineFlags(
            source=source,
            arguments=tuple(arguments or ()),
            expressions=tuple(expression or ()),
            recursive=recursive,
            root=root,
            split_by=None if split_by is None else split_by.value,
            split=split,
            wording=wording.value,
            kind=kind.value,
            count=count,
            limit=limit,
            model=model,
            output=output,
            template=template,
            revision=revision,
            offline=offline,
            max_new_tokens=max_new_tokens,
            precision=None if precision is None else precision.value,
            provider=provider.value,
        )
        refine_to_file(flags, console)
