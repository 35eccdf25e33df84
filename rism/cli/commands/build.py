"""`rism build`: engines of a bundle's graphs."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rism.cli.console import Console, UsageError, write_stdout
from rism.cli.flags import QuietFlags, argument, expecting, option, same_named
from rism.runtime.distribution import needs_extra
from rism.runtime.names import ENGINES_ALONE, EnginePrecision, EngineTarget


@dataclass(frozen=True, kw_only=True)
class BuildFlags(QuietFlags):
    """The flags of `rism build`."""

    bundle: Path = argument(..., metavar="BUNDLE", help="A bundle folder.")
    target: EngineTarget = option("tensorrt-rtx", help="The library that will run the engines.")
    precision: EnginePrecision | None = option(
        None,
        help="Default: that of the bundle's graphs. fp8 and nvfp4 need the scales of rism "
        "calibrate, nvfp4a16 does not; for fp16 and bf16 export the model with that --precision.",
    )
    gpu: str | None = option(
        None,
        metavar="LIST",
        help="GPUs to build for: sm86,sm89,sm120,... Default: all that the library supports.",
    )
    shapes: str | None = option(
        None,
        help="Image sizes: MIN/OPT/MAX, each WIDTHxHEIGHT after resizing for the model; one "
        "size; or static. Default: every size that the bundle takes.",
    )
    batch: str = option("1/1/8", help="Expressions per run: MIN/OPT/MAX, or one number.")
    capture: str | None = option(
        None, metavar="LIST", help="Transformer graphs to build. Default: all."
    )
    strip_weights: bool = option(
        False, help="Build engines without weights; loading fills them in from the bundle."
    )
    bind_weights: bool = option(False, help="Build engines that take the weights as inputs.")
    stream_weights: bool = option(
        False, help="Build engines whose weights may stay in host memory (rism run --memory)."
    )
    scales: Path | None = option(
        None, metavar="FILE", help="FP8 scales. Default: those in the bundle."
    )
    name: str | None = option(None, help="Name of the engine. Default: target and precision.")
    unchecked: bool = option(False, help="Keep engines whose layers fail the checks.")
    force: bool = option(False, help="Build again what the bundle already has.")
    timeout: float = option(
        3600.0,
        callback=expecting("seconds above 0", lambda seconds: 0 < seconds < float("inf")),
        help="Seconds for one graph.",
    )


def build(flags: BuildFlags, console: Console) -> None:
    """Build TensorRT engines of a bundle's graphs, and add them to the bundle."""
    batch = _batch(flags.batch)
    with needs_extra("build", "build"):
        from rism.export.engines import BuildOptions, build_engines
        from rism.export.engines.build_options import WEIGHT_FLAGS
        from rism.export.engines.targets import parse_gpus
        from rism.export.progress import Progress, TerminalProgress
    weights = [kind for kind, flag in WEIGHT_FLAGS.items() if getattr(flags, flag)]
    if len(weights) > 1:
        both = " and ".join(f"--{WEIGHT_FLAGS[kind].replace('_', '-')}" for kind in weights[:2])
        raise UsageError(f"{both} exclude each other: pass one")
    captures = [] if flags.capture is None else flags.capture.split(",")
    options = same_named(
        BuildOptions,
        flags,
        gpus=parse_gpus(flags.gpu) if flags.gpu is not None else (),
        batch=batch,
        captures=tuple(dict.fromkeys(part.strip() for part in captures)),
        weights=weights[0] if weights else "plan",
        timeout_s=flags.timeout,
    )
    start = time.perf_counter()
    report = build_engines(
        flags.bundle, options, progress=Progress() if console.quiet else TerminalProgress()
    )
    if not console.quiet and report.graphs:
        write_stdout(f"{report.table()}\n")
    gpus = ", ".join("sm" + each.replace(".", "") for each in report.compute_capabilities)
    variant = f"{report.name} ({report.target} {report.version}, {report.precision}, {gpus})"
    done = (
        f"kept {variant}, which {flags.bundle} already has (--force builds it again)"
        if report.was_there == "kept"
        else f"{report.was_there or 'added'} {variant} {'in' if report.was_there else 'to'} "
        f"{flags.bundle} in {time.perf_counter() - start:.0f} s"
    )
    console.note(f"{done}; self-test: {report.self_test}")


def check_engine(text: str, precision: str | None) -> None:
    """Refuse an `--engine` that cannot be built, before a model is exported for it.

    The precision is that of the export; None for the model's own.

    Raises:
        UsageError: FP8 or NVFP4, which need a finished bundle to be calibrated on first.
        RismError: the target is unknown, its library is missing, or it needs a GPU that this
            machine does not have.
    """
    name, _, asked = text.partition(":")
    if asked in ENGINES_ALONE:
        raise UsageError(
            f"--engine is {text}, and {asked} engines are built of a finished bundle: export, then "
            f"rism calibrate (not for nvfp4a16), then rism build --precision {asked}"
        )
    if precision is not None and asked not in ("", precision):
        raise UsageError(
            f"--engine is {text} and --precision {precision}: an engine has its graph's precision"
        )
    with needs_extra("build", "build"):
        from rism.export.engines import targets
    target = targets.find_target(name)
    targets.check_gpus(target, (), asked or precision or "fp16", targets.gpus_here())
    targets.installed_version(target)


def build_default_engine(bundle: Path, text: str, console: Console) -> None:
    """Build what `rism export --engine TARGET[:PRECISION]` asks for, which was checked before."""
    target, _, precision = text.partition(":")
    flags = BuildFlags(
        bundle=bundle,
        target=cast("EngineTarget", target),
        precision=cast("EnginePrecision | None", precision or None),
    )
    build(flags, console)


def _batch(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d{1,3})(?:/(\d{1,3})/(\d{1,3}))?", text.strip(), re.ASCII)
    low, best, high = (int(part or match[1]) for part in match.groups()) if match else (0, 0, 0)
    if not 1 <= low <= best <= high:
        raise UsageError(
            f"--batch is '{text}', expected growing MIN/OPT/MAX, such as 1/1/8, or a number from 1"
        )
    return low, best, high
