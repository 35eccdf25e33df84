"""Choosing the engine variant of a bundle that fits this machine, or saying why none does.

NVIDIA's rules: a plan runs only with the exact version of the library that built it (rism builds
no version-compatible plans). Plans of TensorRT for RTX run on Windows and Linux and on the compute
capabilities that they were built for, TensorRT's on the platform and kind of GPU of the build.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rism.runtime.bundle.engine_spec import EngineVariant
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.engines.nvidia_driver import Gpu, sm
from rism.runtime.errors import InputError, ProviderError, listed, one_line
from rism.runtime.names import ENGINES_ALONE

_PORTABLE = ("linux-x86_64", "windows-x86_64")


@dataclass(frozen=True)
class Machine:
    """What a variant has to fit: a library by target and version, a platform, a GPU."""

    target: str
    version: str
    platform: str
    gpu: Gpu


def this_platform() -> str:
    """Name this platform as manifests do: "linux-x86_64"."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return f"{platform.system().lower()}-{machine}"


def build_command(
    bundle: Path | str, target: str, *, gpu: Gpu | None = None, precision: str | None = None
) -> str:
    """Return the command that builds a variant that fits."""
    parts = ["rism build", str(bundle), f"--target {target}"]
    parts += [f"--gpu {sm(gpu.compute_capability)}"] if gpu is not None else []
    parts += [f"--precision {precision}"] if precision is not None else []
    return " ".join(parts)


def misfit(variant: EngineVariant, machine: Machine) -> str | None:
    """Say why a variant cannot run on a machine, both sides named; None where it can."""
    if variant.target != machine.target:
        return f"is for {one_line(variant.target)}, not {machine.target}"
    if variant.version != machine.version:
        return f"was built by {variant.version}, installed is {machine.version}"
    portable = machine.target == "tensorrt-rtx" and machine.platform in _PORTABLE
    if variant.platform != machine.platform and not (portable and variant.platform in _PORTABLE):
        return f"was built for {one_line(variant.platform)}, this is {machine.platform}"
    gpu = machine.gpu
    if gpu.compute_capability not in variant.compute_capabilities:
        return (
            f"runs on compute capability {', '.join(variant.compute_capabilities)}, GPU "
            f"{gpu.number} ({one_line(gpu.name, limit=60)}) has {gpu.compute_capability}"
        )
    return None


def choose_variant(
    manifest: Manifest,
    path: Path,
    machine: Machine,
    *,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    precision: str | None = None,
    engine: str | None = None,
) -> EngineVariant:
    """Return the variant to run, of `precision` and of the name `engine` where these are given.

    Of those that fit, one of the bundle's own precision goes before others, few bits last; then one
    with more of the graphs; then the first of the manifest. It must have the graphs `needed`;
    another provider could run those that are `optional`.

    Raises:
        InputError: no engine of that name.
        ProviderError: none fits; the message says of each why, and the command that builds one.
    """
    named = [variant.name for variant in manifest.engines]
    if engine is not None and engine not in named:
        raise InputError(
            f"engine is '{one_line(engine, limit=60)}', this bundle has "
            f"{listed(named)}: see rism inspect {path}"
        )
    reasons: list[str] = []
    fitting: list[EngineVariant] = []
    for variant in manifest.engines:
        if engine not in (None, variant.name) or (
            engine is None and variant.target != machine.target
        ):
            continue
        reason = (
            misfit(variant, machine)
            or _precision(variant, precision)
            or _lacks(variant, needed)
            or _shapes(variant, manifest)
        )
        if reason is None:
            fitting.append(variant)
        else:
            reasons.append(f"'{variant.name}' {reason}")
    if not fitting:
        command = build_command(path, machine.target, gpu=machine.gpu, precision=precision)
        raise ProviderError(
            f"no engine of this bundle fits {machine.target} {machine.version} on GPU "
            f"{machine.gpu.number} ({one_line(machine.gpu.name, limit=60)}, "
            f"{machine.gpu.compute_capability}): {'; '.join(reasons) or 'it has none'}: {command}"
        )

    return min(fitting, key=lambda variant: _rank(variant, manifest, optional))


def largest_batch(variant: EngineVariant, graphs: Sequence[str]) -> int | None:
    """Return how many expressions a run of all these graphs can hold; None where none is one."""
    sizes = [
        shapes[name].max[0]
        for graph in graphs
        if graph in variant.graphs
        for shapes in [variant.graphs[graph].shapes]
        for name in ("clean_latents", "input_ids")
        if name in shapes and not graph.startswith("vae_encoder")
    ]
    return min(sizes, default=None)


def _rank(
    variant: EngineVariant, manifest: Manifest, optional: Sequence[str]
) -> tuple[bool, int, int]:
    own = variant.compute == manifest.precision.compute
    lacking = sum(name not in variant.graphs for name in optional)
    few = variant.precision in ENGINES_ALONE and 1 + ENGINES_ALONE.index(variant.precision)
    return not own, few, lacking


def _precision(variant: EngineVariant, wanted: str | None) -> str | None:
    if wanted in (None, variant.precision):
        return None
    return f"computes in {one_line(variant.precision)}, not {wanted}"


def _lacks(variant: EngineVariant, needed: Sequence[str]) -> str | None:
    missing = [name for name in needed if name not in variant.graphs]
    if not missing:
        return None
    there = ", ".join(variant.graphs)
    hint = " (the others can run elsewhere: add +onnxruntime-cuda to --provider)"
    return f"has no plan of {', '.join(missing)}, only of {there}" + (
        hint if "transformer" in there and "transformer" not in " ".join(missing) else ""
    )


def _shapes(variant: EngineVariant, manifest: Manifest) -> str | None:
    """Say why a profile can hold no run of the bundle: a batch, the prompt's fixed length."""
    for graph, plan in variant.graphs.items():
        for logical, each in plan.shapes.items():
            if logical in ("clean_latents", "input_ids") and 1 < each.min[0] < each.max[0]:
                return (
                    f"takes '{logical}' of '{graph}' {each.min[0]} to {each.max[0]} at a time, "
                    "expected from 1 or a fixed number"
                )
            length = manifest.prompt.max_length
            if logical == "prompt_weights" and manifest.prompt.padding != "none":
                low, high = each.min[1], each.max[1]
                if not low <= length <= high:
                    return f"takes prompts of {low} to {high} tokens, the bundle's have {length}"
    return None
