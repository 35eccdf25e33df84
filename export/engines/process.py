"""Building one graph in a child process, and turning whatever becomes of it into one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import polygraphy  # noqa: F401  # needed by the child: a missing package is reported here
import psutil

from rism.export.engines.forms import Attentions
from rism.export.engines.listing import EngineLayer, LayerCheck, check_layers, parse_layer
from rism.export.engines.targets import BuildTarget
from rism.export.errors import BuildError
from rism.runtime.bundle.engine_spec import ShapeRange
from rism.runtime.bundle.graph_spec import TensorSpec
from rism.runtime.errors import one_line

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_CHILD = Path(__file__).with_name("child.py")
_TAIL_LINES = 3
_SECONDS_BETWEEN_LOOKS = 0.25


@dataclass(frozen=True)
class BuildJob:
    """One graph to build.

    Attributes:
        graph: its name in the manifest.
        target: the library.
        gpus: compute capabilities.
        precision: of its products: one of `ENGINE_PRECISIONS`, or the type beside nvfp4a16.
        weights: one of `WEIGHTS`.
        inputs: those of the graph, by logical name.
        profile: their shapes, by logical name.
        weights_beside: a path in the folder of the graph's external data.
        attentions: what `bring_into_form` left to fused kernels.
        quantised: how many products are in FP8 or NVFP4.
        narrow: how many weights are of few bits, by their types (`narrow_weights`).
    """

    graph: str
    target: BuildTarget
    gpus: Sequence[str]
    precision: str
    weights: str
    inputs: Mapping[str, TensorSpec]
    profile: Mapping[str, ShapeRange]
    weights_beside: Path
    attentions: Attentions
    quantised: int = 0
    narrow: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was built.

    Attributes:
        graph: the graph's name in the manifest.
        version: the library's.
        seconds: how long the build took.
        peak_bytes: the largest memory that the build held.
        plan_bytes: the size of the plan.
        activation_bytes: what a run takes on the GPU beside weights, inputs and outputs, at the
            largest shapes; None where the library did not say.
        layers: of the engine.
        checks: whether the layers are what was asked for.
    """

    graph: str
    version: str
    seconds: float
    peak_bytes: int
    plan_bytes: int
    activation_bytes: int | None
    layers: Sequence[EngineLayer]
    checks: Sequence[LayerCheck]


def build_graph(
    model: ir.Model, job: BuildJob, plan: Path, *, timeout_s: float = 3600.0
) -> BuiltEngine:
    """Build a graph as it is in a child process, and check the layers of the engine.

    Args:
        model: in the library's form, quantised and with weights as inputs if so wanted.
        job: what it is.
        plan: file to write, in a folder for temporary files.
        timeout_s: after which the build is stopped.

    Raises:
        BuildError: the library refused it, crashed, or took too long; with the end of its log.
    """
    files = {kind: plan.with_suffix(f".{kind}") for kind in ("graph", "job", "answer", "log")}
    files["graph"].write_bytes(ir.to_proto(model).SerializeToString())
    files["job"].write_text(json.dumps(_for_child(job, files, plan)), encoding="utf-8")
    started = time.perf_counter()
    code, seen_bytes = _run_child(job, files, timeout_s)
    seconds = time.perf_counter() - started
    log, answer = _read_log(files["log"]), _read_answer(files["answer"])
    if code is None:
        raise BuildError(
            f"building {job.graph} took longer than {timeout_s:g} s and was stopped; the log "
            f"ends: {log.tail}: allow more time with --timeout"
        )
    if answer is None:
        raise BuildError(_crash(job, code, seen_bytes, log))
    if not answer["built"]:
        raise BuildError(_refusal(job, answer["version"], log))
    for file in files.values():
        file.unlink()
    matrices = job.graph.startswith("transformer.matrices")
    checks = check_layers(
        log.layers,
        precision=job.precision,
        attentions=job.attentions.fused,
        quantised=job.quantised,
        written_out=job.attentions.written_out,
        tokens=None if matrices else job.profile.get("clean_latents"),
        narrow=job.narrow,
    )
    return BuiltEngine(
        graph=job.graph,
        version=answer["version"],
        seconds=seconds,
        peak_bytes=answer["peak_bytes"] or seen_bytes,
        plan_bytes=plan.stat().st_size,
        activation_bytes=log.activation_bytes,
        layers=log.layers,
        checks=checks,
    )


def _for_child(job: BuildJob, files: Mapping[str, Path], plan: Path) -> dict[str, Any]:
    others = job.gpus if job.target.compute_capabilities else ()  # than the GPU of this machine
    return {
        "graph": str(files["graph"]),
        "weights_beside": str(job.weights_beside),
        "stripped": job.weights == "stripped",
        "streamed": job.weights == "streamed",
        "compute_capabilities": [[int(part) for part in gpu.split(".")] for gpu in others],
        "profile": {job.inputs[name].name: asdict(shape) for name, shape in job.profile.items()},
        "plan": str(plan),
        "answer": str(files["answer"]),
    }


def _run_child(
    job: BuildJob, files: Mapping[str, Path], timeout_s: float
) -> tuple[int | None, int]:
    """Return the exit code, None where the child was stopped, and the most memory that was seen."""
    environment = os.environ | {
        # The child finds packages where this process does.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUTF8": "1",
        "POLYGRAPHY_AUTOINSTALL_DEPS": "0",
        "POLYGRAPHY_USE_TENSORRT_RTX": "1" if job.target.module == "tensorrt_rtx" else "0",
    }
    # By its file, which imports nothing of rism; -u, so that a crash leaves the end of the log; -P,
    # so that no module here takes the name of another.
    command = [sys.executable, "-P", "-u", str(_CHILD), str(files["job"])]
    stop, peak = time.monotonic() + timeout_s, 0
    with (
        files["log"].open("wb") as log,
        psutil.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        ) as child,
    ):
        try:
            while (left := stop - time.monotonic()) > 0:
                with suppress(psutil.Error):
                    peak = max(peak, child.memory_info().rss)
                with suppress(psutil.TimeoutExpired):
                    return child.wait(min(left, _SECONDS_BETWEEN_LOOKS)), peak
        finally:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    return None, peak


@dataclass(frozen=True)
class _Log:
    """What the log of a build says; `tail` and `error` are for messages."""

    layers: list[EngineLayer]
    activation_bytes: int | None
    error: str
    tail: str


def _read_log(file: Path) -> _Log:
    """Read a log of Polygraphy, in which [X] are verbose lines, [E] errors, and blanks go on."""
    layers, activation_bytes, error = [], None, "no reason was given"
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if (layer := parse_layer(line)) is not None:
                layers.append(layer)
            elif (found := _ACTIVATIONS.search(line)) is not None:
                activation_bytes = int(found[1])
            elif line.startswith("[E] "):
                error = line[4:]
            if line.strip() and not line.startswith(("[X]", " ")):
                tail.append(line)
    said = one_line(" | ".join(map(str.strip, tail)) or "(empty)", limit=400)
    return _Log(layers, activation_bytes, one_line(error.strip(), limit=400), said)


def _read_answer(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _crash(job: BuildJob, code: int, peak: int, log: _Log) -> str:
    name = f"exit code {code}"
    if code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
    free = psutil.virtual_memory()
    memory = f"it held {peak / 1e9:.1f} GB, the machine has {free.total / 1e9:.0f} GB"
    way = "try another --precision or another version of the library"
    if name == "SIGKILL":
        way = "it was most likely killed for memory: try --bind-weights, or a larger machine"
    return (
        f"building {job.graph}: {job.target.module} crashed ({name}); {memory}; the log ends: "
        f"{log.tail}: {way}"
    )


def _refusal(job: BuildJob, version: str, log: _Log) -> str:
    said = f"building {job.graph}: {job.target.module} {version}"
    if "STRIP" in log.error or ("graph_jit" in log.error and job.weights == "stripped"):
        return (
            f"{said} compiles what refits a stripped engine on a GPU, and finds none here that it "
            f"can use: build on a machine with one, or use --bind-weights ({log.error})"
        )
    return (
        f"{said} refused it ({log.error}): try another --precision or another version of the "
        "library"
    )
