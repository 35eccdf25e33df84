"""A full-size model from an image file to a mask file, on a machine without a GPU.

A checkpoint of random weights in the published layout is exported; `rism run` then reads a JPEG
and writes a mask, with everything resident and with less memory. Last, the graphs in the bundle
are compared with PyTorch, which reads one layer at a time: the same model with the same rounded
weights, on a small image.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.child_process import ROOT, environment_with_root
from benchmarks.harness.errors import ScenarioError
from benchmarks.harness.rows import EXAMPLE, Row, Task, of_value, read_row
from benchmarks.synthetic.checkpoints import parse_blocks, write_model
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.parity.gate import Gate
from rism.export.precision import find_precision
from rism.export.quantisation.block_rounding import DEFAULT_BLOCK
from rism.runtime.bundle.reader import Bundle

_EXPRESSION = "the green van"


def measure(task: Task) -> Iterator[Row]:
    """Measure the export, then `rism run` for each amount of memory; "" for all there is."""
    place = tempfile.TemporaryDirectory() if not task["folder"] else None
    folder = Path(place.name if place else task["folder"])
    checkpoint, bundle, picture = folder / "checkpoint", folder / "bundle", folder / "street.jpg"
    try:
        if not checkpoint.exists():
            write_model(checkpoint, task["model"], parse_blocks(task["blocks"]))
        with Image.open(EXAMPLE) as image:
            image.convert("RGB").save(picture, quality=95)
        kept = folder / "export.json"
        if bundle.exists():
            yield read_row(json.loads(kept.read_text()))
        else:
            arguments = ["--model", str(checkpoint), "-o", str(bundle), "-q", "--parity", "blocks"]
            for name in ("precision", "text_precision", "size_level"):
                arguments += [f"--{name.replace('_', '-')}", str(task[name])]
            row, _ = _row("rism export", ["export", *arguments])
            row.notes["bundle_bytes"] = sum(file.stat().st_size for file in bundle.iterdir())
            kept.write_text(json.dumps(asdict(row)))
            yield row
        for memory in task["memory"]:
            mask = folder / f"mask{memory}.png"
            arguments = [str(picture), _EXPRESSION, "--bundle", str(bundle), "-o", str(mask)]
            limit = ["--memory", memory] if memory else []
            command = ["run", *arguments, "--provider", "cpu", "--json", "--always", *limit]
            row, printed = _row(" ".join(["rism run", *limit]), command)
            [record] = json.loads(printed)
            with Image.open(mask) as found:
                row.notes["mask_share"] = float((np.asarray(found) > 0).mean())
            row.notes["timings_ms"] = record["timings_ms"]
            yield row
        if task["compare"]:
            yield from _compare(task, checkpoint, bundle)
    finally:
        if place:
            place.cleanup()


def _row(name: str, arguments: list[str]) -> tuple[Row, str]:
    """Run `rism` to its end: seconds, and the most memory that the kernel saw it hold.

    Raises:
        ScenarioError: it failed.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "rism", *arguments],
        cwd=ROOT, env=environment_with_root(), stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise ScenarioError(f"rism {arguments[0]} ended with {process.returncode}")
    seconds = time.perf_counter() - start
    notes: dict[str, Any] = {"cpu_s": used.ru_utime + used.ru_stime}
    return Row(name, "", "s", (seconds,), host_bytes=used.ru_maxrss * 1024, notes=notes), printed


def _compare(task: Task, checkpoint: Path, bundle: Path) -> Iterator[Row]:
    opened = Bundle.open(bundle, verify=False)
    precision = opened.manifest.precision
    model = open_model(find_checkpoint(str(checkpoint)))
    model.spec = model.spec.at_level(task["size_level"])
    start = time.perf_counter()
    given, text = (
        find_precision(task[name], block=DEFAULT_BLOCK, keep=())
        for name in ("precision", "text_precision")
    )
    gate = Gate(model, bundle, given, text, lean=True)
    mode = opened.manifest.default_capture
    graph = opened.manifest.graphs[f"transformer.{mode}"]
    checks = gate.transformer({None: {mode: graph.file}}, opened.noise(), "mmsa")
    errors = {name: check.error for name, check in checks[f"transformer.{mode}"].items()}
    seconds, group = time.perf_counter() - start, "largest difference from PyTorch"
    on_cpu = {name: error for name, error in errors.items() if name.startswith("cpu ")}
    others = {name: error for name, error in errors.items() if name not in on_cpu}
    for name, each in (("rism run", on_cpu), (f"graph for GPUs, {precision.compute}", others)):
        largest = max(each.values(), default=0.0)
        yield of_value(name, largest, unit="", group=group, errors=each, seconds=seconds)
