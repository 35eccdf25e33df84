"""Latency and memory of every provider and engine that a bundle has on this machine.

Engines that the bundle lacks and this GPU can run are built first (`build`). Each way is measured
in a process of its own, on images and expressions that it has not seen, one at a time and several
together, and runs the bundle's self-test. What cannot run is listed with its reason. A bundle gets
its engines and test vectors added; the built-in one is copied before.
"""

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.measure import peak_memory_bytes, repeat
from benchmarks.harness.rows import (
    Row,
    Task,
    absent,
    bundle_folder,
    failed,
    pending,
    read_row,
    timed,
)
from benchmarks.run import in_child
from benchmarks.scenarios.image import fresh_images, unseen_expressions
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.diagnostics import selftest
from rism.runtime.diagnostics.environment import probe
from rism.runtime.engines.providers import PROVIDERS
from rism.runtime.engines.selection import EngineRequest
from rism.runtime.errors import RismError
from rism.runtime.names import PRECISION_OF_TYPE

_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Way:
    """A provider, or an engine of it, with a bundle."""

    provider: str
    precision: str
    engine: str | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """Of its row."""
        return f"{self.engine or self.provider}, {self.precision}"


def measure(task: Task) -> Iterator[Row]:
    """Measure every way, a process each."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = bundle_folder(task["bundle"])
        if folder == bundle_folder("mini"):
            folder = Path(shutil.copytree(folder, Path(scratch) / "mini"))
        _record_vectors(folder)
        ways = find_ways(folder, build=task["build"])
        yield from (pending(way.name) for way in ways)
        for way in ways:
            if way.reason is not None:
                yield absent(way.name, way.reason)
            else:
                yield run_way(task, folder, way)


def run_way(task: Task, folder: Path, way: Way) -> Row:
    """Measure one way in a process of its own: its memory is apart, and a crash is a reason."""
    parameters = {"bundle": str(folder), "provider": way.provider, "engine": way.engine or ""}
    parameters["expressions"] = task["expressions"]
    lines = in_child(replace(task, kind="provider", parameters=parameters), _TIMEOUT_S)
    for line in lines:
        if "row" in line:
            return replace(read_row(line["row"]), name=way.name)
    reasons = [line["reason"] for line in lines if "reason" in line]
    return failed(way.name, reasons[-1])


def find_ways(folder: Path, *, build: bool) -> list[Way]:
    """List every provider, and every engine of a bundle, with those that `build` adds to it."""
    own = PRECISION_OF_TYPE[Bundle.open(folder, verify=False).manifest.precision.compute]
    ways = []
    probes = {name: probe(each, device=0) for name, each in PROVIDERS.items()}
    # What an engine's variant, or the plugin, does not have runs on the best onnxruntime that does.
    others = [name for name, each in PROVIDERS.items() if each.every_graph and probes[name].ready]
    for provider, found in reversed(probes.items()):
        reason = None if found.ready else found.text
        if not PROVIDERS[provider].built:
            more = others[:1] if found.ready and not PROVIDERS[provider].every_graph else []
            ways.append(Way("+".join([provider, *more]), own, reason=reason))
            continue
        problem = _build(folder, provider) if build and found.ready else None
        engines = Bundle.open(folder, verify=False).manifest.engines
        mine = [each for each in engines if each.target == provider]
        names = "+".join([provider, *others[:1]])
        ways += [Way(names, each.precision, each.name, reason) for each in mine]
        if problem or not mine:
            ways.append(Way(provider, own, reason=reason or problem or "the bundle has no engine"))
    return ways


def _build(folder: Path, target: str) -> str | None:
    """Build a target's engines where the bundle has none of that precision; say why not."""
    from rism.export.engines import BuildOptions, build_engines

    manifest = Bundle.open(folder, verify=False).manifest
    problems = []
    for precision in [
        PRECISION_OF_TYPE[manifest.precision.compute],
        *["fp8"] * bool(manifest.calibration),
    ]:
        if any(e.target == target and e.precision == precision for e in manifest.engines):
            continue
        try:
            build_engines(folder, BuildOptions(target=target, precision=precision))
        except RismError as error:
            problems.append(f"{precision} was not built: {error}")
    return "; ".join(problems) or None


def _record_vectors(folder: Path) -> None:
    """Record test vectors where a bundle has none, if onnxruntime can run it here."""
    for provider in ("onnxruntime-cpu", "onnxruntime-cuda"):  # the latter for bfloat16
        if Bundle.open(folder, verify=False).manifest.self_test is None:
            try:
                selftest.record(folder, EngineRequest(provider, 0))
            except RismError:
                continue


def measure_one(task: Task) -> list[Row]:
    """Load, run and test one provider or engine of a bundle.

    Raises:
        RismError: it cannot run here.
    """
    # The engines are freed before the self-test loads those of each graph again.
    row = _timed(task)
    verdict, comparisons = _self_test(task)
    if verdict == "failed":
        return [failed(row.name, "the self-test failed: its time means nothing")]
    tested = {"self_test": verdict, "comparisons": comparisons}
    return [replace(row, notes=row.notes | tested)]


def _timed(task: Task) -> Row:
    before = _device_memory(task["provider"])
    start = time.perf_counter()
    segmenter = Segmenter.from_bundle(
        task["bundle"], provider=task["provider"], engine=task["engine"] or None
    )
    loaded = time.perf_counter()
    images, texts = fresh_images(), unseen_expressions()
    stages: dict[str, list[float]] = {}

    def run(count: int) -> Any:
        # An image or an expression that was seen before would not be encoded again.
        return segmenter.segment(next(images), [next(texts) for _ in range(count)])

    def run_one() -> None:
        [result] = run(1)
        for stage, spent in result.timings_ms.items():
            stages.setdefault(stage, []).append(spent)

    [result] = run(1)
    first_s = time.perf_counter() - loaded
    one = repeat(run_one, runs=task.runs, warm_up=task.warm_up)
    together = repeat(lambda: run(task["expressions"]), runs=task.runs, warm_up=1)
    after, held = _device_memory(task["provider"]), peak_memory_bytes()
    return timed(
        task["provider"],
        one,
        host_bytes=held,
        device_bytes=None if before is None or after is None else after - before,
        runs_on=result.provider,
        precision=result.precision,
        tokens=result.plan.tokens,
        load_s=loaded - start,
        first_s=first_s,
        together=together.to_json_dict(),
        stages_ms={k: statistics.median(v[-task.runs :]) for k, v in stages.items()},
    )


def _self_test(task: Task) -> tuple[str, list[dict[str, Any]]]:
    """Compare with the bundle's vectors: "passed", "failed" or why there was no test."""
    bundle = Bundle.open(task["bundle"], verify=False)
    if bundle.manifest.self_test is None:
        return "has no vectors", []
    try:
        if task["engine"]:
            found = selftest.check_variant(bundle, task["engine"], device=0)
        else:
            precision = bundle.manifest.precision
            provider = task["provider"].partition("+")[0]
            loads = selftest.onnx_loads(bundle, provider, EngineRequest(task["provider"], 0))
            found = selftest.check(bundle, loads, precision=precision.compute)
    except RismError as error:
        return f"could not run: {error}", []
    listed = [
        {**asdict(c), "error": c.error if np.isfinite(c.error) else None, "passed": c.passed}
        for c in found
    ]
    return "passed" if all(c.passed for c in found) else "failed", listed


def _device_memory(provider: str) -> int | None:
    """Return the memory in use on the GPU in bytes, as the driver says; None on a CPU."""
    if provider == "onnxruntime-cpu":
        return None
    command = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        return int(answer.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
