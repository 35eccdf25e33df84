"""Benchmarks that are commands of their own, as scenarios: their figures as rows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import ConfigError, DiffersError, ScenarioError
from benchmarks.harness.rows import (
    EXAMPLE,
    Job,
    Row,
    absent,
    bundle_folder,
    failed,
    pending,
    summed_up,
)

__all__ = ["measure_folder", "measure_postprocess_gpu", "measure_probe", "measure_providers"]


def measure_folder(job: Job) -> list[Row]:
    """`benchmarks.folder`: pictures read, answered and written, with and without overlap."""
    module = import_module("benchmarks.folder")
    result: dict[str, Any] = module.run(**job.parameters, runs=job.runs)
    if result.get("files_that_differ"):
        raise DiffersError(
            f"{result['files_that_differ']} of {result['files']} files differ between the two ways"
        )
    timings = {name: each for name, each in result.items() if _is_timing(each)}
    if not timings:
        raise ScenarioError("benchmarks.folder gave no times")
    rest = {name: each for name, each in result.items() if name not in timings}
    return [
        summed_up(name.replace("_", " "), each, host_bytes=each.get("peak_bytes"), **rest)
        for name, each in timings.items()
    ]


def _is_timing(given: object) -> bool:
    return isinstance(given, dict) and {"median_s", "min_s", "max_s", "runs"} <= set(given)


def measure_providers(job: Job) -> Iterator[Row]:
    """`benchmarks.providers`: new pictures and expressions on everything that this machine has."""
    from benchmarks import providers
    from benchmarks.provider_run import Job as ProviderJob

    own = ProviderJob(str(EXAMPLE), job.runs, job.warm_up, job.get("expressions", int))
    with tempfile.TemporaryDirectory() as scratch:
        folder = bundle_folder(job.get("bundle", str))
        # The built-in one is not added to; another may be, which saves building twice.
        if folder == bundle_folder("mini"):
            folder = Path(shutil.copytree(folder, Path(scratch) / "mini"))
        found = providers.find_rows(folder, build=job.get("build", bool))
        yield from (pending(f"{row.name}, {row.precision}") for row in found)
        for row in providers.measure(folder, found, own):
            measured = row.measured
            name = f"{row.name}, {row.precision}"
            if measured is None:
                reason = row.reason or "it said nothing"
                # Listed without having been started: this machine has no such thing.
                yield (absent if row in found else failed)(name, reason)
            elif measured.self_test == "failed":
                yield failed(name, "the self-test failed: its time means nothing")
            else:
                yield summed_up(
                    name,
                    measured.one,
                    host_bytes=measured.host_bytes,
                    device_bytes=measured.device_bytes,
                    load_s=measured.load_s,
                    first_s=measured.first_s,
                    together=measured.together,
                    stages_ms=measured.stages_ms,
                    self_test=measured.self_test,
                )


# Largest errors of a and T a over their largest value, against float64.
_PROBE_LIMITS = {"cpu": 1e-5, "cuda": 2e-2}


def measure_probe(job: Job) -> Iterator[Row]:
    """`benchmarks.probe`: one block's probe, every way of it."""
    import torch

    from benchmarks import probe
    from benchmarks.rooflines.probe import SHAPES

    case, device = job.get("case", str), job.get("device", str)
    if case not in (*SHAPES, "small") or device not in _PROBE_LIMITS:
        raise ConfigError(
            f"case '{case}' on '{device}' is not known, expected one of {', '.join(SHAPES)} or "
            "small, on cuda or cpu"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ScenarioError("PyTorch finds no CUDA device, expected an NVIDIA GPU")
    gpu = probe.known_gpu(torch.cuda.get_device_name()) if device == "cuda" else None
    with torch.no_grad():
        for each in probe.measure(case, device, job.runs, gpu):
            error = max(
                (value for key, value in each.items() if key.startswith("error")), default=0
            )
            if "not_run" in each:
                yield failed(each["way"], each["not_run"])
            elif error > _PROBE_LIMITS[device]:
                yield failed(each["way"], f"differs from float64 by {error:.1e}")
            else:
                notes = {k: value for k, value in each.items() if k.startswith(("err", "floor"))}
                yield summed_up(each["way"], each, **notes)


def measure_postprocess_gpu(job: Job) -> list[Row]:
    """`benchmarks.postprocess_gpu`: masks of outputs that lie on a GPU."""
    from benchmarks import postprocess_gpu
    from rism.runtime.engines.cuda_device import open_device

    cases = {case.name: case for case in postprocess_gpu.CASES}
    name = job.get("case", str)
    if name not in cases:
        raise ConfigError(f"case '{name}' is not known, expected one of {', '.join(cases)}")
    result = postprocess_gpu.measure(
        cases[name],
        job.get("capture", str),
        job.get("expressions", int),
        device=open_device(0),
        runs=job.runs,
        flush_bytes=postprocess_gpu.FLUSH_BYTES,
    )
    pixels = cases[name].size_wh[0] * cases[name].size_wh[1] * job.get("expressions", int)
    if max(result["pixels_that_differ"].values()) > 1e-3 * pixels:
        raise DiffersError(f"masks differ: {result['pixels_that_differ']} of {pixels} pixels")
    rest = {"launches": result["launches"], "copy_bytes_per_s": result["copy_bytes_per_s"]}
    return [
        summed_up(way, result[way], **(rest if way == "kernels" else {}))
        for way in ("host", "kernels")
    ]
