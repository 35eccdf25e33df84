"""A folder of images through `rism map`: against `rism run`, killed at random, on two nodes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks.harness.child_process import ROOT, environment_with_root
from benchmarks.harness.errors import DiffersError, ScenarioError
from benchmarks.harness.rows import Row, Task, image_size
from benchmarks.scenarios.folder import draw

BASELINE, OURS = "rism run", "rism map"
TEXTS = ("the green van", "the yellow cat", "the blue dog")
_ASKED = [part for text in TEXTS for part in ("-e", text)]
_PATIENCE_S = 600.0
Found = dict[tuple[str, str], dict[str, Any]]


def measure(task: Task) -> Iterator[Row]:
    """Time both on the same folder; what they find must be equal, and memory must not grow.

    Raises:
        DiffersError: it is not.
    """
    with _images(task) as (images, place):
        found: Found = {}
        start = time.perf_counter()
        with (place / "run.jsonl").open("wb") as file:
            command = ["run", images, *_ASKED, "--provider", "cpu", "--jsonl", "-q"]
            _finish(subprocess.Popen(_python("rism", *command), stdout=file, **_where()))
        yield _rate(BASELINE, task, time.perf_counter() - start)
        for line in (place / "run.jsonl").read_text().splitlines():
            record = json.loads(line)
            found[Path(record["image"]).name, record["expression"]] = record
        start, memory = time.perf_counter(), []
        process = _map(task, images, _new(place / "single"))
        while process.poll() is None:
            memory.append(_memory(process.pid))
            time.sleep(task["memory_every_s"])
        _finish(process)
        took = time.perf_counter() - start
        for key, row in _rows(place / "single").items():
            record = found.pop(key)
            if any(row[name] != record[name] for name in ("rle", "box_xyxy", "confidence")):
                raise DiffersError(f"{key} differs between rism run and rism map")
        if found:
            raise DiffersError(f"{len(found)} results of rism run are not in rism map's")
        middle, last = memory[len(memory) // 4 : len(memory) // 2], memory[-len(memory) // 4 :]
        growth = max(last, default=1) / max(middle, default=1) - 1
        if growth > task["growth"]:
            raise DiffersError(f"memory grew by {growth:.0%} from the second quarter to the last")
        yield _rate(OURS, task, took, host_bytes=max(memory, default=None), memory_growth=growth)


def measure_killed(task: Task) -> Iterator[Row]:
    """Kill actors and drivers at random moments, resume, and compare with a single run.

    Raises:
        DiffersError: a row is missing, there twice, or another.
    """
    drawn = random.Random(task["seed"])
    with _images(task) as (images, place):
        single = _single(task, images, place)
        dest, kills, start = _new(place / "killed"), task["kills"], time.perf_counter()
        for kill in range(kills):
            process = _map(task, images, dest, *(["--resume"] if kill else []))
            _wait_for(dest, (kill + drawn.random()) / (kills + 1) * task["images"], process)
            _actor(process.pid).kill()
            time.sleep(drawn.uniform(0, task["pause_s"]))
            if process.poll() is not None:
                raise ScenarioError("the run ended before it was killed: more images")
            process.kill()
            process.wait()
        _finish(_map(task, images, dest, "--resume"))
        took = time.perf_counter() - start
        yield _compared(task, single, dest, took, actors_killed=kills, drivers_killed=kills)


def measure_nodes(task: Task) -> Iterator[Row]:
    """Kill one of two Ray nodes of this machine midway, and compare with a single run.

    Raises:
        DiffersError: a row is missing, there twice, or another.
    """
    with _images(task) as (images, place):
        single, dest = _single(task, images, place), _new(place / "nodes")
        with _two_nodes(_new(place / "ray")) as (address, second):
            start = time.perf_counter()
            process = _map(task, images, dest, "--address", address)
            _wait_for(dest, task["images"] / 2, process)
            second.kill()
            _finish(process)
            took = time.perf_counter() - start
        yield _compared(task, single, dest, took, nodes_killed=1)


def _compared(task: Task, single: Path, dest: Path, took: float, **notes: object) -> Row:
    if _rows(single) != _rows(dest) or len(_rows(dest)) != task["images"] * len(TEXTS):
        raise DiffersError("the rows are not those of a single run")
    return _rate(OURS, task, took, None, **notes)


def _rate(
    name: str, task: Task, seconds: float, host_bytes: int | None = None, **notes: object
) -> Row:
    notes |= {"rows_per_s": task["images"] * len(TEXTS) / seconds}
    return Row(name, f"{task['images']} images", "s", (seconds,), host_bytes, notes=notes)


@contextmanager
def _images(task: Task) -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        place = Path(task["folder"] or made).resolve()
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "images").exists():
            draw(place / "images", task["images"], image_size(task["size"]))
        yield place / "images", place


def _new(folder: Path) -> Path:
    """Remove what an earlier call has left in a kept folder."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _single(task: Task, images: Path, place: Path) -> Path:
    """Return the DEST of one uninterrupted run; a kept folder may have it."""
    dest = place / "single"
    _finish(_map(task, images, dest, *(["--resume"] if dest.exists() else [])))
    return dest


def _python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _where() -> dict[str, Any]:
    return {"cwd": ROOT, "env": environment_with_root(), "stderr": subprocess.PIPE}


def _map(task: Task, images: Path, dest: Path, *more: str) -> "subprocess.Popen[bytes]":
    flags = ["--provider", "cpu", "--actors", 2, "--threads", 1]
    if task["part"]:
        flags += ["--part", task["part"]]
    return subprocess.Popen(
        _python("rism", "map", images, "-o", dest, *_ASKED, *flags, *more), **_where()
    )


def _finish(process: "subprocess.Popen[bytes]") -> None:
    said = process.communicate()[1].decode(errors="replace").strip().splitlines()
    if process.returncode:
        raise ScenarioError(f"a command ended with {process.returncode}: {said[-1:]}")


def _rows(dest: Path) -> Found:
    """Return the rows of DEST.

    Raises:
        DiffersError: an id and expression are there twice.
    """
    rows = pq.read_table(dest).to_pylist()
    found = {(row["id"], row["expression"]): row for row in rows}
    if len(found) != len(rows):
        raise DiffersError(f"{len(rows) - len(found)} rows are there twice")
    return found


def _wait_for(dest: Path, images: float, process: "subprocess.Popen[bytes]") -> None:
    """Wait until DEST has so many images, and one at least."""
    counted: dict[Path, int] = {}
    end = time.monotonic() + _PATIENCE_S
    before = 0
    while sum(counted.values()) < max(1.0, images) * len(TEXTS):
        for part in set(dest.glob("part-*")) - set(counted):
            counted[part] = pq.read_metadata(part).num_rows
        if len(counted) != before:
            before, end = len(counted), time.monotonic() + _PATIENCE_S
        if process.poll() is not None or time.monotonic() > end:
            raise ScenarioError("the run ended or stood still before it could be killed")
        time.sleep(0.05)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _actor(pid: int) -> psutil.Process:
    """Return one of the run's actors, once there is one."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        for each in _tree(pid):
            try:
                if "RismActor" in " ".join(each.cmdline()):
                    return each
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise ScenarioError("the run has no actor")


def _memory(pid: int) -> int:
    """Return the bytes that a process and those it started hold, shared ones once."""
    total = 0
    for each in _tree(pid):
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue
    return total


@contextmanager
def _two_nodes(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start two Ray nodes of a core each on this machine: the address, and the second's raylet."""
    port, before = random.randrange(20_000, 30_000), {each.pid for each in psutil.process_iter()}
    settings = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    where: dict[str, Any] = {"cwd": ROOT, "env": environment_with_root() | settings, "check": True}
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    kept = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        for node in (head, [f"--address=127.0.0.1:{port}"]):
            command = _python("ray.scripts.scripts", "start", "--num-cpus=1", *node)
            subprocess.run(command, **where, capture_output=True, timeout=_PATIENCE_S)
        raylets = [each for each in _of_ray(folder, before) if each.name() == "raylet"]
        yield f"127.0.0.1:{port}", max(raylets, key=lambda each: each.create_time())
    finally:
        for each in _of_ray(folder, before):
            each.send_signal(signal.SIGKILL)
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _of_ray(folder: Path, before: set[int]) -> list[psutil.Process]:
    """Return the processes of these nodes: new ones that name their folder."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.pid not in before and str(folder) in " ".join(each.cmdline()):
                found.append(each)
        except psutil.Error:
            continue
    return found
