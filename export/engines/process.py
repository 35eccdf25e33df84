"""Running one build in a child process, and turning whatever becomes of it into one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rism.export.engines.errors import BuildError
from rism.export.engines.listing import Layer, parse_layers
from rism.runtime.bundle.engine_spec import ShapeRange
from rism.runtime.errors import one_line

__all__ = ["Built", "Job", "run_job"]

_TAIL_LINES = 3


@dataclass(frozen=True)
class Job:
    """One graph to build.

    Attributes:
        name: of the graph, for messages.
        module: the library.
        graph: file of the graph's bytes.
        weights_beside: a path in the folder that the graph's external data lies in.
        flags: of the builder's configuration.
        compute_capabilities: none for this machine's GPU.
        profile: shapes by name of input.
        plan: file to write.
    """

    name: str
    module: str
    graph: Path
    weights_beside: Path
    flags: Sequence[str]
    compute_capabilities: Sequence[str]
    profile: Mapping[str, ShapeRange]
    plan: Path


@dataclass(frozen=True)
class Built:
    """What a build left.

    Attributes:
        version: the library's.
        seconds: in the child.
        peak_bytes: the largest memory that it held.
        activation_bytes: what a run takes on the GPU beside weights, inputs and outputs, at the
            largest shapes; None where the library did not say.
        layers: of the engine.
    """

    version: str
    seconds: float
    peak_bytes: int
    activation_bytes: int | None
    layers: list[Layer]


def run_job(job: Job, *, timeout_s: float) -> Built:
    """Build in a child process.

    Args:
        job: what; the folder of its plan is written to.
        timeout_s: after which the child is killed.

    Raises:
        BuildError: the library refused, crashed, or took too long; with the end of its log.
    """
    work = job.plan.parent
    files = {
        name: work / f"{job.plan.stem}.{name}"
        for name in ("job", "answer", "log", "listing", "err")
    }
    files["job"].write_text(json.dumps(_as_json(job, files)), encoding="utf-8")
    command = [sys.executable, "-m", "rism.export.engines.child", str(files["job"])]
    peak = _Peak()
    with files["err"].open("wb") as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=_environment()
        )
        try:
            with peak.watch(child.pid):
                code: int | None = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    answer = _answer(files["answer"])
    if code is None:
        raise BuildError(
            f"building {job.name} took longer than {timeout_s:.0f} s and was stopped; the log "
            f"ends: {_tail(files)}: give it more with --timeout"
        )
    if answer is None:
        raise BuildError(_crash(job, code, peak.bytes, files))
    if not answer["built"]:
        raise BuildError(_refusal(job, answer))
    with files["listing"].open(encoding="utf-8", errors="replace") as lines:
        layers = parse_layers(lines)
    for file in files.values():
        file.unlink(missing_ok=True)
    return Built(
        version=answer["version"],
        seconds=answer["seconds"],
        peak_bytes=answer["peak_bytes"] or peak.bytes,
        activation_bytes=answer["activation_bytes"],
        layers=layers,
    )


def _as_json(job: Job, files: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "module": job.module,
        "graph": str(job.graph),
        "weights_beside": str(job.weights_beside),
        "flags": list(job.flags),
        "compute_capabilities": list(job.compute_capabilities),
        "profile": {
            name: {"min": shape.min, "opt": shape.opt, "max": shape.max}
            for name, shape in job.profile.items()
        },
        "plan": str(job.plan),
        "answer": str(files["answer"]),
        "log": str(files["log"]),
        "listing": str(files["listing"]),
    }


def _environment() -> dict[str, str]:
    """The child finds rism where this process does, however it was installed."""
    paths = [path for path in sys.path if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _answer(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _crash(job: Job, code: int, peak: int, files: Mapping[str, Path]) -> str:
    name = f"exit code {code}"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
    free = psutil.virtual_memory()
    memory = f"it held {peak / 1e9:.1f} GB, the machine has {free.total / 1e9:.0f} GB"
    way = "try another --precision or another version of the library"
    if name == "SIGKILL":
        way = "it was most likely killed for memory: try --bind-weights, or a larger machine"
    return (
        f"building {job.name}: {job.module} crashed ({name}); {memory}; the log ends: "
        f"{_tail(files)}: {way}"
    )


def _refusal(job: Job, answer: Mapping[str, Any]) -> str:
    reason = one_line(answer["reason"], limit=400)
    if "STRIP" in reason or ("graph_jit" in reason and "STRIP_PLAN" in job.flags):
        return (
            f"building {job.name}: {job.module} {answer['version']} compiles what refits a "
            "stripped engine on a GPU, and there is none that it can use here: build on a machine "
            f"with one, or use --bind-weights ({reason})"
        )
    return (
        f"building {job.name}: {job.module} {answer['version']} refused it ({answer['stage']}: "
        f"{reason}): try another --precision or another version of the library"
    )


def _tail(files: Mapping[str, Path]) -> str:
    lines: list[str] = []
    for name in ("log", "err"):
        try:
            text = files[name].read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        lines += [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]
    return one_line(" | ".join(lines) or "(empty)", limit=400)


class _Peak:
    """The most memory that a process was seen to hold, for when it cannot tell any more."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, pid: int) -> _Peak:
        self._thread = threading.Thread(target=self._look, args=(pid,), daemon=True)
        return self

    def __enter__(self) -> None:
        assert self._thread is not None
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        assert self._thread is not None
        self._thread.join()

    def _look(self, pid: int) -> None:
        while not self._done.wait(0.25):
            try:
                self.bytes = max(self.bytes, psutil.Process(pid).memory_info().rss)
            except psutil.Error:
                return
