"""One provider with one bundle, measured: what `benchmarks.providers` starts as a process."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.harness.measure import repeat
from benchmarks.harness.with_peak import peak_memory_bytes
from rism.runtime import Segmenter, load_image
from rism.runtime.bundle.reader import Bundle
from rism.runtime.diagnostics.selftest import check, check_variant, onnx_loads
from rism.runtime.engines.selection import EngineRequest
from rism.runtime.errors import RismError

__all__ = ["Job", "Measured", "measure"]

_COLOURS = ("green", "red", "blue", "yellow", "white", "black", "grey", "brown")
_THINGS = ("van", "car", "house", "tree", "cup", "dog", "lamp", "door")
_PLACES = ("on the left", "on the right", "in front", "behind", "at the top", "at the bottom")


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        picture: a file.
        runs, warm_up: timed ones, and those before.
        expressions: asked together.
        device: number of the GPU.
        bundle: a folder.
        provider, engine: what runs it.
    """

    picture: str
    runs: int
    warm_up: int
    expressions: int
    device: int = 0
    bundle: str = ""
    provider: str = ""
    engine: str | None = None


@dataclass(frozen=True)
class Measured:
    """What came of it.

    Attributes:
        runs_on: what the results say that ran them.
        precision: what they say that it computed in.
        tokens: of the picture.
        expressions: asked together.
        load_s: from the bundle to engines that are ready, seconds.
        first_s: the first picture and expression after that.
        one: a picture and an expression that were not seen before (`Timing.to_json_dict`).
        together: several new expressions on a new picture.
        stages_ms: medians of the stages of `one`.
        host_bytes: the most memory that the process held, the engine's files included.
        device_bytes: what the GPU's memory in use grew by; None on a CPU.
        self_test: "passed", "failed", or why there was none.
        comparisons: of the self-test.
    """

    runs_on: str
    precision: str
    tokens: int
    expressions: int
    load_s: float
    first_s: float
    one: dict[str, float]
    together: dict[str, float]
    stages_ms: dict[str, float]
    host_bytes: int
    device_bytes: int | None
    self_test: str = "was not run"
    comparisons: list[dict[str, Any]] = field(default_factory=list)


def measure(job: Job) -> Measured:
    """Load, run, test.

    Raises:
        RismError: it cannot run here.
    """
    # The engines are gone before the self-test loads each graph's again.
    timed = _timed(job)
    verdict, comparisons = _self_test(job)
    return replace(timed, self_test=verdict, comparisons=comparisons)


def _timed(job: Job) -> Measured:
    before = _device_memory(job)
    start = time.perf_counter()
    segmenter = Segmenter.from_bundle(
        job.bundle, provider=job.provider, device=job.device, engine=job.engine
    )
    loaded = time.perf_counter()
    pixels = load_image(job.picture).copy()
    fresh, texts = itertools.count(), _expressions()
    stages: dict[str, list[float]] = {}

    def run(count: int) -> Any:
        # A picture or an expression that was seen before would not be encoded again.
        number = next(fresh)
        pixels[0, 0] = (number & 255, number >> 8 & 255, number >> 16)
        return segmenter.segment(pixels, [next(texts) for _ in range(count)])

    def run_one() -> None:
        [result] = run(1)
        for stage, spent in result.timings_ms.items():
            stages.setdefault(stage, []).append(spent)

    [result] = run(1)
    first_s = time.perf_counter() - loaded
    one = repeat(run_one, runs=job.runs, warm_up=job.warm_up)
    together = repeat(lambda: run(job.expressions), runs=job.runs, warm_up=1)
    after, held = _device_memory(job), peak_memory_bytes()
    return Measured(
        runs_on=result.provider,
        precision=result.precision,
        tokens=result.plan.tokens,
        expressions=job.expressions,
        load_s=loaded - start,
        first_s=first_s,
        one=one.to_json_dict(),
        together=together.to_json_dict(),
        stages_ms={k: statistics.median(v[-job.runs :]) for k, v in stages.items()},
        host_bytes=held,
        device_bytes=None if before is None or after is None else after - before,
    )


def _expressions() -> Any:
    """Yield expressions without end, none of them twice."""
    for number in itertools.count():
        for colour, thing, place in itertools.product(_COLOURS, _THINGS, _PLACES):
            yield f"the {colour} {thing} {place}" + (f" {number}" if number else "")


def _self_test(job: Job) -> tuple[str, list[dict[str, Any]]]:
    """Compare with the bundle's vectors, if it has any."""
    bundle = Bundle.open(job.bundle, verify=False)
    if bundle.manifest.self_test is None:
        return "has no vectors", []
    try:
        if job.engine is not None:
            found = check_variant(bundle, job.engine, device=job.device)
        else:
            precision = bundle.manifest.precision
            provider = job.provider.partition("+")[0]
            loads = onnx_loads(bundle, provider, EngineRequest(job.provider, job.device))
            found = check(bundle, loads, precision=precision.compute)
    except RismError as error:
        return f"could not run: {error}", []
    listed = [
        {**asdict(c), "error": c.error if np.isfinite(c.error) else None, "passed": c.passed}
        for c in found
    ]
    return "passed" if all(c.passed for c in found) else "failed", listed


def _device_memory(job: Job) -> int | None:
    """Return what the driver says of a GPU's memory in use, bytes; None where a CPU runs all."""
    if job.provider == "onnxruntime-cpu":
        return None
    command = ["nvidia-smi", f"--id={job.device}", "--query-gpu=memory.used"]
    command.append("--format=csv,noheader,nounits")
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        return int(answer.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def main(run: Callable[[Job], Measured] = measure) -> None:
    """Measure what the argument says, and print the figures, or the reason, as JSON."""
    job = Job(**json.loads(sys.argv[1]))
    try:
        answer: dict[str, Any] = asdict(run(job))
    except RismError as error:
        answer = {"reason": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
