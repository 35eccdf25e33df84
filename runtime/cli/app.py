"""The commands and their flags.

Only typer is imported here: `--help` must not wait for numpy. Each command imports what it
needs when it runs.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    name="rism",
    help="Which pixels does an expression refer to? Asked of an image-editing model.",
    add_completion=False,
    no_args_is_help=True,
    # Rich costs more time than everything else that --help does, and breaks lines in errors.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Provider(StrEnum):
    """What a refiner can run on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class EnginePrecision(StrEnum):
    """What an engine of a bundle can compute in; rism.runtime.engine_spec."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    fp8 = "fp8"


class Tokens(StrEnum):
    """Prompt tokens whose attention counts; docs/bundle.md, step 5."""

    all = "all"
    valid = "valid"
    instruction = "instruction"
    expression = "expression"


class Capture(StrEnum):
    """What the transformer's graph gives; docs/bundle.md, step 5."""

    vectors = "vectors"
    matrices = "matrices"
    scores = "scores"


class ExportPrecision(StrEnum):
    """What a bundle's graphs compute in; rism.export.precision."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Target(StrEnum):
    """Libraries that engines are built for; rism.export.engines.targets."""

    rtx = "tensorrt-rtx"
    tensorrt = "tensorrt"


class RefinePrecision(StrEnum):
    """What a refiner computes in; rism.export.refine."""

    bf16 = "bf16"
    fp32 = "fp32"


class TritonDevice(StrEnum):
    """Where a server's models run; rism.export.triton."""

    auto = "auto"
    gpu = "gpu"
    cpu = "cpu"


class CalibrationRule(StrEnum):
    """How FP8 scales are chosen; rism.calibration.measure."""

    max = "max"
    percentile = "percentile"
    mask = "mask"


class Parity(StrEnum):
    """How much of a model is compared with PyTorch."""

    auto = "auto"
    full = "full"
    blocks = "blocks"


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more, and where an error came from.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
Tau = Annotated[
    float | None, typer.Option(help="Region threshold, 0 to below 1; the bundle has a default.")
]


def _provider(text: str) -> str:
    from rism.runtime.errors import InputError
    from rism.runtime.providers import parse_provider

    try:
        parse_provider(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return text


RunProvider = Annotated[
    str,
    typer.Option(
        metavar="PROVIDER",
        callback=_provider,
        help="auto, onnxruntime-cpu (cpu), onnxruntime-cuda (cuda), tensorrt-rtx, tensorrt; "
        "tensorrt-rtx+onnxruntime-cuda runs graphs without an engine elsewhere.",
    ),
]
Device = Annotated[int, typer.Option(min=0, help="Number of the GPU.")]
EngineName = Annotated[
    str | None, typer.Option(help="An engine of the bundle by name; rism inspect lists them.")
]


def _print_version(asked: bool) -> None:
    if asked:
        from rism import __version__

        typer.echo(f"rism {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Which pixels does an expression refer to? Asked of an image-editing model."""


@app.command()
def run(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="A picture, a folder of them, or - for stdin.")
    ],
    expressions: Annotated[
        list[str],
        typer.Argument(metavar="EXPRESSION", help="What to find, one quoted text each."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="FILE.png, FILE.json, a folder (DIR/), or - for a PNG on stdout. "
            "Left out: mask and overlay in the current folder.",
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(help="Pictures to write: mask,overlay,cutout,heatmap or all."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON, masks as COCO RLE.")
    ] = False,
    bundle: Annotated[
        str | None,
        typer.Option(help="A folder that rism export wrote. Left out: the built-in mini."),
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
    tau: Tau = None,
    tokens: Annotated[
        Tokens, typer.Option(help="Which tokens of the prompt count; padding does only in all.")
    ] = Tokens.all,
    template: Annotated[
        str | None,
        typer.Option(help="The instruction, such as 'segment {expression}'; the bundle has one."),
    ] = None,
    refiner: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Python that rewords each instruction after a look at the picture.",
        ),
    ] = None,
    instructions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Say it in the words of a file that rism refine wrote."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep text embeddings here; the text encoder is loaded only for new ones.",
        ),
    ] = None,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Segment what each EXPRESSION refers to in IMAGE."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.run import RunOptions, run_pictures

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        options = RunOptions(
            image=image,
            expressions=tuple(expressions),
            output=output,
            save=save,
            as_json=json,
            bundle=bundle,
            provider=provider,
            device=device,
            precision=None if precision is None else precision.value,
            engine=engine,
            capture=None if capture is None else capture.value,
            tau=tau,
            tokens=tokens.value,
            template=template,
            refiner=refiner,
            instructions=instructions,
            cache=cache,
            threads=threads,
        )
        run_pictures(options, console)


@app.command()
def inspect(
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help="A bundle folder. Left out: the built-in mini."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbose = False,
) -> None:
    """Check a bundle's files and print what it is."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.inspect import inspect_bundle

    with Console(verbose=verbose).reporting():
        inspect_bundle(bundle, as_json=json)


@app.command()
def doctor(
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help="A bundle folder. Left out: the built-in mini."),
    ] = None,
    provider: RunProvider = "auto",
    device: Device = 0,
    engine: EngineName = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Store what PROVIDER computes as the vectors to compare with."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Say what runs here and what does not, and compare every engine's numbers."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.doctor import DoctorFlags, examine

    console = Console(verbose=verbose)
    with console.reporting():
        examine(DoctorFlags(bundle, provider, device, engine, record, json, threads), console)


@app.command()
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
            help="Bring every picture to about N x N pixels, as the paper does. Left out: "
            "shrink only what is larger than the model takes."
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Graphs of fixed sizes, WIDTHxHEIGHT,...  Left out: one for any size."),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="The instruction. Left out: 'remove {expression}'.")
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
        bool, typer.Option("--dry-run", help="Print what would be read, written and needed.")
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
            feature_site=feature_site,
            token_attention=token_attention,
            parity=parity.value,
            revision=revision,
            offline=offline,
            dry_run=dry_run,
            engines=tuple(engine or ()),
        )
        export_model(flags, console)


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    target: Annotated[
        Target, typer.Option(help="The library that is to run the engines.")
    ] = Target.rtx,
    precision: Annotated[
        EnginePrecision | None,
        typer.Option(help="The bundle's own, or fp8 with scales of rism calibrate."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="sm86,sm89,sm120,...  Left out: all that the library can build for."),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="MIN/OPT/MAX, each WIDTHxHEIGHT of what the model sees; one size; or static. "
            "Left out: whatever the bundle takes."
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="Expressions of a run, MIN/OPT/MAX or one number.")
    ] = "1/1/8",
    capture: Annotated[
        str | None, typer.Option(help="Transformer graphs to build. Left out: all.")
    ] = None,
    strip_weights: Annotated[
        bool,
        typer.Option("--strip-weights", help="Engines refitted from the bundle's own weights."),
    ] = False,
    bind_weights: Annotated[
        bool,
        typer.Option("--bind-weights", help="Engines that take the bundle's weights as inputs."),
    ] = False,
    scales: Annotated[
        Path | None, typer.Option(help="FP8 scales. Left out: those in the bundle.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the engine. Left out: target and precision.")
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Keep engines whose layers fail their checks.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for one graph.")] = 3600.0,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Build TensorRT engines of a bundle's graphs, and add them to the bundle."""
    from rism.runtime.cli.build import BuildFlags
    from rism.runtime.cli.build import build as run_build
    from rism.runtime.cli.console import Console

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = BuildFlags(
            bundle=bundle,
            target=target.value,
            precision=None if precision is None else precision.value,
            gpu=gpu,
            shapes=shapes,
            batch=batch,
            capture=capture,
            strip_weights=strip_weights,
            bind_weights=bind_weights,
            scales=scales,
            name=name,
            unchecked=unchecked,
            timeout_s=timeout,
        )
        run_build(flags, console)


@app.command()
def calibrate(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A folder that rism export wrote.")
    ],
    images: Annotated[Path, typer.Option(metavar="DIR", help="A folder of pictures.")],
    expressions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What to ask of them: one to a line, or JSON with 'image' and 'expression'. "
            "Left out: a few that fit any picture.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the scales there. Left out: store them in the bundle."
        ),
    ] = None,
    rule: Annotated[
        CalibrationRule,
        typer.Option(help="Largest value; a percentile; or the percentile that keeps the masks."),
    ] = CalibrationRule.max,
    percentile: Annotated[
        float | None, typer.Option(help="For --rule percentile. Left out: 99.99.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers to leave as they are, such as '*.to_out'."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Use at most so many pictures with an expression.")
    ] = 32,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what it does to each layer as JSON.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.")
    ] = None,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the scales of BUNDLE's FP8 engines on pictures."""
    from rism.runtime.cli.calibrate import CalibrateFlags, calibrate_bundle
    from rism.runtime.cli.console import Console

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = CalibrateFlags(
            bundle=bundle,
            images=images,
            expressions=expressions,
            output=output,
            rule=rule.value,
            percentile=percentile,
            keep=tuple(keep or ()),
            samples=samples,
            report=report,
            plot=plot,
            threads=threads,
        )
        calibrate_bundle(flags, console)


@app.command()
def refine(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture, or a folder of them.")],
    expressions: Annotated[
        list[str],
        typer.Argument(metavar="EXPRESSION", help="What is to be found, one quoted text each."),
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
    template: Annotated[
        str | None, typer.Option(help="The instruction. Left out: 'remove {expression}'.")
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
    """Have a model reword the instruction for each EXPRESSION, after a look at IMAGE."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.refine import RefineFlags, refine_to_file

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = RefineFlags(
            image=image,
            expressions=tuple(expressions),
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


@app.command("export-triton")
def export_triton(
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help="A bundle folder. Left out: the built-in mini."),
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The model repository to write, a folder.")
    ],
    capture: Annotated[
        Capture | None,
        typer.Option(help="Which transformer graph. Left out: scores, where the bundle has it."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Serve the plans of this engine of the bundle."),
    ] = None,
    device: Annotated[
        TritonDevice, typer.Option(help="Where the models run; auto leaves it to the server.")
    ] = TritonDevice.auto,
    instances: Annotated[int, typer.Option(help="Of each model, on each device.")] = 1,
    max_batch: Annotated[
        int, typer.Option(help="Expressions that the server may join into one run.")
    ] = 8,
    queue_delay: Annotated[
        int, typer.Option(help="Microseconds that a request may wait for others.")
    ] = 1000,
    tau: Tau = None,
    prefix: Annotated[
        str, typer.Option(help="Before every model's name, for servers of several bundles.")
    ] = "",
    link: Annotated[
        bool, typer.Option("--link", help="Hard links to the bundle's weights, not copies.")
    ] = False,
    segmenter: Annotated[
        bool,
        typer.Option(
            "--segmenter",
            help="Also a model that takes pictures and expressions, in the Python backend.",
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a model repository for Triton Inference Server."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.export_triton import TritonFlags, write_repository

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = TritonFlags(
            bundle=bundle,
            output=output,
            capture=None if capture is None else capture.value,
            engine=engine,
            device=device.value,
            instances=instances,
            max_batch=max_batch,
            queue_delay=queue_delay,
            tau=tau,
            prefix=prefix,
            link=link,
            segmenter=segmenter,
        )
        write_repository(flags, console)
