"""A folder of pictures with the built-in model: several at once against one after the other.

`python -m benchmarks.folder [--pictures 200] [--runs 3] [--shares] [--memory] [--json FILE]`; each
run is a process that reads, segments and writes mask and overlay of every picture, timed from the
first bundle file to the last picture:

- `single_calls`: one process, one call after the other (`rism run --workers 1`), all threads
- `overlapped`: `rism run` as it is
- with `--shares`, other numbers of pictures at once and of threads for each
- with `--memory`, what a process holds at most, by the number of pictures
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.measure import Timing, environment

__all__ = ["memory", "report", "run"]

EXAMPLE = Path(__file__).parent.parent / "examples" / "street.png"
EXPRESSION = "the green van"
BASELINE, OURS = "single_calls", "overlapped"
# Pictures at once, and threads of all of them; None is what `rism run` chooses.
Share = tuple[int | None, int | None]
WAYS: dict[str, Share] = {BASELINE: (1, None), OURS: (None, None)}
SHARES: dict[str, Share] = {
    "one_at_a_time_1_thread": (1, 1),
    "two_at_once_1_thread_each": (2, 2),
    "two_at_once_2_threads_each": (2, 4),
    "three_at_once_1_thread_each": (3, 3),
    "four_at_once_1_thread_each": (4, 4),
}
SMALL_WH = (160, 120)


def run(*, pictures: int = 200, runs: int = 3, shares: bool = False) -> dict[str, Any]:
    """Time and peak memory of every way, by turns, after a short run of each.

    Returns:
        For each way the times of a whole folder in seconds with "peak_bytes"; beside them
        "times_faster", and "files_that_differ" between the first two.
    """
    ways = WAYS | (SHARES if shares else {})
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0)
    with tempfile.TemporaryDirectory() as scratch:
        folder, few = Path(scratch) / "in", Path(scratch) / "few"
        draw(folder, pictures)
        draw(few, 4)
        for way in ways.values():
            _once(few, Path(scratch) / "out", way)
        for _ in range(runs):
            for name, way in ways.items():
                took, peak = _once(folder, Path(scratch) / f"out-{name}", way)
                seconds[name].append(took)
                peaks[name] = max(peaks[name], peak)
        one, other = (Path(scratch) / f"out-{name}" for name in (BASELINE, OURS))
        written = sorted(file.name for file in one.iterdir())
        assert written == sorted(file.name for file in other.iterdir())
        differ = sum((one / name).read_bytes() != (other / name).read_bytes() for name in written)
    timings = {name: Timing(tuple(each)) for name, each in seconds.items()}
    return {
        **{name: t.to_json_dict() | {"peak_bytes": peaks[name]} for name, t in timings.items()},
        "pictures": pictures,
        "times_faster": timings[BASELINE].median / timings[OURS].median,
        "files": len(written),
        "files_that_differ": differ,
    }


def memory(*, counts: Sequence[int] = (200, 2000)) -> dict[str, Any]:
    """Peak memory of a process, with small pictures: {"single_calls": {"200": bytes, ...}, ...}."""
    found: dict[str, dict[str, int]] = {name: {} for name in WAYS}
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            draw(Path(scratch) / "in", count, size_wh=SMALL_WH)
            for name, way in WAYS.items():
                _, peak = _once(Path(scratch) / "in", Path(scratch) / name, way)
                found[name][str(count)] = peak
    return found


def draw(folder: Path, count: int, *, size_wh: tuple[int, int] | None = None) -> None:
    """Write pictures no two of which have the same pixels."""
    folder.mkdir()
    with Image.open(EXAMPLE) as image:
        street = image.convert("RGB") if size_wh is None else image.convert("RGB").resize(size_wh)
    pixels = np.asarray(street)
    for number in range(count):
        moved = np.roll(pixels, number * 7, axis=1)
        moved[0, 0] = (number >> 8, number & 255, 0)
        Image.fromarray(moved).save(folder / f"{number:05d}.png")


def _once(folder: Path, output: Path, way: Share) -> tuple[float, int]:
    """Run a process: seconds, and its peak memory in bytes."""
    command = [sys.executable, "-m", "benchmarks.folder", "--once", str(folder), str(output)]
    command += [str(each or 0) for each in way]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(said)
    return found["seconds"], found["peak_bytes"]


def _measure_once(folder: str, output: str, workers: str, threads: str) -> None:
    from benchmarks.harness.with_peak import peak_memory_bytes
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.run import RunOptions, run_pictures

    options = RunOptions(
        arguments=(folder,),
        expressions=(EXPRESSION,),
        output=f"{output}/",
        provider="cpu",
        workers=int(workers) or None,
        threads=int(threads) or None,
    )
    start = time.perf_counter()
    run_pictures(options, Console(quiet=True))
    took = time.perf_counter() - start
    print(json.dumps({"seconds": took, "peak_bytes": peak_memory_bytes()}))


def report(result: dict[str, Any]) -> str:
    """A short table."""
    pictures, base = result["pictures"], result[BASELINE]["median_s"]
    lines = [f"a folder of {pictures} pictures, median (fastest to slowest)"]
    for name in (each for each in (*WAYS, *SHARES) if each in result):
        way = result[name]
        lines.append(
            f"  {name.replace('_', ' '):<28} {way['median_s']:6.2f} s "
            f"({way['min_s']:.2f} to {way['max_s']:.2f})  "
            f"{way['median_s'] / pictures * 1e3:6.1f} ms each  {base / way['median_s']:5.2f} x  "
            f"{way['peak_bytes'] / 1e6:6.1f} MB"
        )
    lines.append(f"  (bar: 1.6 x) {result['files_that_differ']} of {result['files']} files differ")
    return "\n".join(lines)


def _report_memory(found: dict[str, dict[str, int]]) -> str:
    lines = ["peak memory of a process, by pictures"]
    for name, each in found.items():
        told = ", ".join(f"{count}: {nbytes / 1e6:.1f} MB" for count, nbytes in each.items())
        lines.append(f"  {name.replace('_', ' '):<28} {told}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folder", description=__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shares", action="store_true", help="other ways to share the CPUs, too")
    parser.add_argument("--memory", action="store_true", help="of 200 and of 2,000 pictures, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        _measure_once(*args.once)
        return
    result: dict[str, Any] = {"environment": environment()}
    result["folder"] = run(pictures=args.pictures, runs=args.runs, shares=args.shares)
    print(report(result["folder"]), flush=True)
    if args.memory:
        result["memory"] = memory()
        print(_report_memory(result["memory"]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
