"""`rism export`: a bundle from a checkpoint."""

import re
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rism.cli.console import Console, UsageError, write_stdout
from rism.cli.flags import CheckpointFlags, QuietFlags, option, same_named, template_option
from rism.export.families.find import BUILT_IN, published_models
from rism.export.names import (
    MAX_NOISY_GRID,
    BlockSize,
    FeatureSite,
    GraphPrecision,
    ParityMode,
    Preset,
)
from rism.runtime.distribution import needs_extra
from rism.runtime.errors import OutputError
from rism.runtime.names import CAPTURES


@dataclass(frozen=True, kw_only=True)
class ExportFlags(CheckpointFlags, QuietFlags):
    """The flags of `rism export`."""

    model: str = option(
        ...,
        help=f"{', '.join([*BUILT_IN, *published_models()])}, a folder, a .safetensors file, "
        "or a hub id.",
    )
    output: Path = option(..., "--output", "-o", metavar="DIR", help="The bundle folder to write.")
    precision: GraphPrecision | None = option(
        None,
        help="Precision of the graphs; int8 and int4 round the weights of the transformer's "
        "blocks. Default: that of the published model.",
    )
    text_precision: GraphPrecision | None = option(
        None, help="Precision of the text side. Default: the same, with its weights not rounded."
    )
    block_size: BlockSize = option(
        "32", help="Weights that share a scale, for int8 and int4: more of them, less memory."
    )
    activations: Path | None = option(
        None,
        metavar="FILE",
        help="Round by activations that rism calibrate --activations measured.",
    )
    keep: list[str] | None = option(
        None, metavar="PATTERN", help="Layers that int8 and int4 leave alone, such as '*.to_out.0'."
    )
    capture: str = option(
        CAPTURES[0],
        metavar="LIST",
        help=f"Transformer graphs: some of {','.join(CAPTURES)}. The first is the bundle's "
        "default.",
    )
    size_level: int | None = option(
        None,
        min=8,
        max=8192,
        help="Resize every image to about N x N pixels, as the paper does. Default: shrink "
        "only images that are larger than the model takes.",
    )
    sizes: str | None = option(
        None,
        metavar="LIST",
        help="Graphs of fixed sizes: WIDTHxHEIGHT,... Default: one graph for any size.",
    )
    template: str | None = template_option()
    vision_id: bool | None = option(
        None,
        "--vision-id/--no-vision-id",
        help="Put 'Picture 1: ' before the image in the prompt, for families that can. "
        "Default: as the release of the model does.",
    )
    feature_site: FeatureSite = option(
        "mmsa",
        help="Where features are read: the attention's output (mmsa), its modulated input "
        "(adaln), or the block's output (block).",
    )
    token_attention: bool = option(False, help="Also output attention per prompt token.")
    preset: Preset = option(
        "paper",
        help="How much is computed: as published (paper), or blocks up to the features' with a "
        "quarter of the noisy tokens (fast), for less than half of the work.",
    )
    capture_blocks: str | None = option(
        None,
        metavar="CHOICE",
        help="Blocks that attention is read from: all, deep (single-stream), to-features, 0-20, "
        "every:2, or several with commas. The graph ends with the last block that is read. "
        "Default: the preset's.",
    )
    noisy_grid: int | None = option(
        None,
        min=1,
        max=MAX_NOISY_GRID,
        help="Keep noisy tokens only in every N-th row and column. Default: the preset's.",
    )
    report: Path | None = option(
        None, metavar="FILE", help="Write the error of each layer as JSON, for int8 and int4."
    )
    parity: ParityMode = option(
        "auto", help="Compare with PyTorch the whole model (full), or one block of each kind."
    )
    engines: list[str] | None = option(
        None,
        "--engine",
        metavar="TARGET[:PRECISION]",
        help="Build an engine afterwards: tensorrt-rtx or tensorrt. Repeatable; see rism build.",
    )
    dry_run: bool = option(
        False, help="Print what would be read, written and needed; without PyTorch, what is known."
    )


def export(flags: ExportFlags, console: Console) -> None:
    """Write a bundle from a checkpoint, and prove that it computes the same."""
    from rism.cli.commands.build import build_default_engine, check_engine
    from rism.runtime.atomic_write import write_atomically

    captures, sizes = _parse_captures(flags.capture), _parse_sizes(flags.sizes)
    # Weights in few bits are multiplied in float16.
    computes = "fp16" if flags.precision in ("int8", "int4") else flags.precision
    for engine in flags.engines or ():
        check_engine(engine, computes)
    if flags.report is not None and not flags.report.parent.is_dir():
        folder = flags.report.parent
        raise OutputError(f"folder {folder} does not exist: make it first (mkdir -p {folder})")
    if flags.dry_run and find_spec("torch") is None:
        _plan_from_headers(flags)
        return
    with needs_extra("export", "export"):
        from rism.export import (
            ExportOptions,
            Progress,
            TerminalProgress,
            export_bundle,
            plan_export,
        )
        from rism.export.quantisation.layer_report import report_json
    options = same_named(
        ExportOptions,
        flags,
        captures=captures,
        sizes=sizes,
        block_size=int(flags.block_size),
        keep=tuple(flags.keep or ()),
    )
    if flags.dry_run:
        plan = plan_export(flags.model, flags.output, options)
        write_stdout(f"{plan.table()}\n")
        plan.check(flags.output)
        return
    start = time.perf_counter()
    progress = Progress() if console.quiet else TerminalProgress()
    report = export_bundle(flags.model, flags.output, options, progress=progress)
    if flags.report is not None:
        write_atomically(flags.report, report_json(report.rounded).encode())
    if not console.quiet:
        write_stdout(f"{report.parity_table().rstrip()}\n")
    console.note(
        f"wrote {flags.output}, {report.size_bytes / 1e6:,.1f} MB, in "
        f"{time.perf_counter() - start:.0f} s"
    )
    for engine in flags.engines or ():
        build_default_engine(flags.output, engine, console)


def _plan_from_headers(flags: ExportFlags) -> None:
    """Print what file sizes and headers tell, where there is no PyTorch to build the modules."""
    from rism.export.plan.header_plan import plan_from_headers

    plan = plan_from_headers(
        flags.model,
        flags.output,
        precision=flags.precision,
        text_precision=flags.text_precision,
        revision=flags.revision,
        offline=flags.offline,
    )
    write_stdout(f"{plan.table()}\n")
    plan.check(flags.output)


def _parse_captures(text: str) -> tuple[str, ...]:
    asked = [part.strip() for part in text.split(",")]
    unknown = [part for part in asked if part not in CAPTURES]
    if unknown:
        raise UsageError(f"--capture has '{unknown[0]}', expected some of {','.join(CAPTURES)}")
    return tuple(dict.fromkeys(asked))


def _parse_sizes(text: str | None) -> tuple[tuple[int, int], ...]:
    if text is None:
        return ()
    sizes = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d{0,4})x([1-9]\d{0,4})\s*", part, re.ASCII)
        if match is None:
            raise UsageError(f"--sizes has '{part}', expected WIDTHxHEIGHT, such as 1024x768")
        sizes.append((int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(sizes))
