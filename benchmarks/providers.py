"""`python -m benchmarks.providers BUNDLE...`: latency and memory of every provider and precision.

On a GPU machine: builds what a bundle lacks and that GPU can run (`--no-build`: only what is
there), runs the self-tests, then measures each provider and engine in a process of its own:
pictures and expressions that it has not seen, one at a time and several together. What cannot run
is listed with its reason. Ratios are against the first of onnxruntime-cuda and onnxruntime-cpu
that ran. Bundles get their engines and test vectors added; without BUNDLE it is a copy of mini.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import environment
from benchmarks.provider_run import Job, Measured
from rism.runtime.bundle.reader import BUILT_IN, Bundle, resolve_bundle
from rism.runtime.diagnostics import selftest
from rism.runtime.diagnostics.environment import probe, the_driver
from rism.runtime.engines.nvidia_driver import Driver
from rism.runtime.engines.providers import PROVIDERS
from rism.runtime.engines.selection import EngineRequest
from rism.runtime.errors import RismError, one_line

__all__ = ["Row", "find_rows", "main", "report"]

_PACKAGES = ("onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cupy-cuda13x", "cupy-cuda12x")
_TIMEOUT_S = 1800
_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PICTURE = Path(__file__).parent.parent / "examples" / "street.png"


@dataclass(frozen=True)
class Row:
    """A provider, or an engine of it, with a bundle.

    Attributes:
        provider: one of the runtime's names, or some joined by "+".
        precision: "fp32", "fp16", "bf16" or "fp8".
        engine: name of the bundle's variant, for the TensorRT ones.
        reason: why it did not run, or None.
        measured: what came of it, where it ran.
    """

    provider: str
    precision: str
    engine: str | None = None
    reason: str | None = None
    measured: Measured | None = field(default=None)

    @property
    def name(self) -> str:
        """For tables."""
        return self.engine or self.provider


def find_rows(folder: Path, *, build: bool, device: int = 0) -> list[Row]:
    """List what there is to run: every provider, and every engine of a bundle.

    Args:
        folder: the bundle; engines that it lacks and this machine can run are added to it.
        build: whether to build them.
        device: number of the GPU.
    """
    own = _SHORT[Bundle.open(folder, verify=False).manifest.precision.compute]
    rows = []
    probes = {name: probe(each, device=device) for name, each in PROVIDERS.items()}
    # What an engine's variant, or the plugin, does not have runs on the best onnxruntime that does.
    others = [name for name, each in PROVIDERS.items() if each.every_graph and probes[name].ready]
    for provider, found in reversed(probes.items()):
        if not PROVIDERS[provider].built:
            more = others[:1] if found.ready and not PROVIDERS[provider].every_graph else []
            names = "+".join([provider, *more])
            rows.append(Row(names, own, reason=None if found.ready else found.text))
            continue
        problem = _build(folder, provider) if build and found.ready else None
        engines = Bundle.open(folder, verify=False).manifest.engines
        mine = [each for each in engines if each.target == provider]
        for each in mine:
            reason = None if found.ready else found.text
            names = "+".join([provider, *others[:1]])
            rows.append(Row(names, each.precision, each.name, reason))
        if not found.ready:
            problem = found.text
        if not mine or (problem is not None and found.ready):
            rows.append(Row(provider, own, reason=problem or "the bundle has no engine for it"))
    return rows


def measure(folder: Path, rows: Sequence[Row], job: Job) -> Iterator[Row]:
    """Run what can run, each in a process of its own, and give each out once it has run.

    Args:
        folder: the bundle.
        rows: of `find_rows`.
        job: what to do with each; bundle, provider and engine are filled in.
    """
    for row in rows:
        if row.reason is None:
            print(f"measuring {row.name} ...", file=sys.stderr, flush=True)
            own = replace(job, bundle=str(folder), provider=row.provider, engine=row.engine)
            yield _child(row, own)
        else:
            yield row


def baseline(rows: Sequence[Row]) -> Row | None:
    """Return what ratios are against: onnxruntime on CUDA, else on the CPU."""
    ran = {row.provider: row for row in rows if row.measured is not None}
    return ran.get("onnxruntime-cuda") or ran.get("onnxruntime-cpu")


def report(rows: Sequence[Row]) -> str:
    """A table: medians in milliseconds with the fastest and slowest run, memory, self-test."""
    against = baseline(rows)
    lines = [_line(row, against) for row in rows]
    if against is not None:
        lines.append(f"ratios are against {against.name}, of the whole of one expression")
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Everything of a table, for a file."""
    against = baseline(rows)
    found = []
    for row in rows:
        entry = {"status": "not run" if row.reason else "ran", **asdict(row)}
        if row.measured is not None and against is not None:
            entry |= {"baseline": against.name, "ratio": _ratio(row, against)}
        found.append(entry)
    return found


def _build(folder: Path, target: str) -> str | None:
    """Build a target's engines where the bundle has none of that precision; say why not."""
    from rism.export.engines import BuildOptions, build_engines

    manifest = Bundle.open(folder, verify=False).manifest
    wanted = [_SHORT[manifest.precision.compute]] + ["fp8"] * (manifest.calibration is not None)
    problems = []
    for precision in wanted:
        if any(e.target == target and e.precision == precision for e in manifest.engines):
            continue
        try:
            build_engines(folder, BuildOptions(target=target, precision=precision))
        except RismError as error:
            problems.append(f"{precision} was not built: {error}")
    return "; ".join(problems) or None


def _child(row: Row, job: Job) -> Row:
    """Measure in a process of its own: memory is its alone, and a crash is a reason."""
    command = [sys.executable, "-m", "benchmarks.provider_run", json.dumps(asdict(job))]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return replace(row, reason=f"was not done after {_TIMEOUT_S} s")
    if run.returncode != 0:
        said = run.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return replace(row, reason=f"exit code {run.returncode}: {one_line(said[0])}")
    answer = json.loads(run.stdout.splitlines()[-1])
    if "reason" in answer:
        return replace(row, reason=answer["reason"])
    return replace(row, measured=Measured(**answer))


def _ratio(row: Row, against: Row) -> float:
    assert row.measured is not None and against.measured is not None
    return against.measured.one["median_s"] / row.measured.one["median_s"]


def _line(row: Row, against: Row | None) -> str:
    head = f"{row.name:<28} {row.precision:<5}"
    if row.measured is None:
        return f"{head} not run: {row.reason}"
    found = row.measured
    one, together = found.one, found.together
    text = (
        f"{head} {one['median_s'] * 1e3:8.1f} ms ({one['min_s'] * 1e3:.1f} to "
        f"{one['max_s'] * 1e3:.1f}), {found.expressions} together "
        f"{together['median_s'] * 1e3 / found.expressions:.1f} each, load {found.load_s:.1f} s, "
        f"memory {found.host_bytes / 1e9:.2f} GB"
    )
    if found.device_bytes is not None:
        text += f" + {found.device_bytes / 1e9:.2f} GB on the GPU"
    text += f", self-test {found.self_test}"
    return text if against is None else f"{text}, x{_ratio(row, against):.2f}"


def _prepared(given: Path | None, scratch: Path, device: int) -> tuple[Path, str | None]:
    """Return a bundle that may be added to and has test vectors, or why it has none."""
    folder = given or Path(shutil.copytree(resolve_bundle(), scratch / BUILT_IN))
    if Bundle.open(folder).manifest.self_test is not None:
        return folder, None
    problems = []
    for provider in ("onnxruntime-cpu", "onnxruntime-cuda"):  # the latter for bfloat16
        try:
            selftest.record(folder, EngineRequest(provider, device))
        except RismError as error:
            problems.append(str(error))
        else:
            return folder, None
    return folder, "; ".join(problems)


def main() -> None:
    """Measure each bundle, print its table, write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.providers", description=__doc__)
    parser.add_argument("bundles", nargs="*", type=Path, help="folders; none: a copy of mini")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--runs", type=int, default=20, help="timed runs")
    parser.add_argument("--warm-up", type=int, default=3, help="runs before them")
    parser.add_argument("--expressions", type=int, default=4, help="asked together")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--no-build", action="store_true", help="run only engines that are there")
    args = parser.parse_args()
    if min(args.runs, args.warm_up + 1, args.expressions) < 1:
        parser.error("--runs and --expressions must be 1 or more, --warm-up 0 or more")
    job = Job(
        picture=str(args.picture.resolve()),
        runs=args.runs,
        warm_up=args.warm_up,
        expressions=args.expressions,
        device=args.device,
    )
    driver = the_driver()
    machine = {"driver": asdict(driver) if isinstance(driver, Driver) else driver}
    results: dict[str, Any] = {"environment": environment(packages=_PACKAGES) | machine}
    results["settings"] = {"runs": args.runs, "warm_up": args.warm_up, "picture": args.picture.name}
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for given in args.bundles or [None]:
            try:
                folder, untested = _prepared(given, Path(scratch), args.device)
                rows = find_rows(folder, build=not args.no_build, device=args.device)
            except RismError as error:
                print(f"error: {error}", file=sys.stderr)
                failed = True
                continue
            manifest = Bundle.open(folder, verify=False).manifest
            print(f"{one_line(manifest.model.name)}, {manifest.precision.compute}", flush=True)
            rows = [*measure(folder, rows, job)]
            print(report(rows), flush=True)
            results[str(given or BUILT_IN)] = {
                "model": manifest.model.name,
                "revision": manifest.model.revision,
                "precision": asdict(manifest.precision),
                "no_vectors": untested,
                "rows": as_json(rows),
            }
            failed |= any(row.measured and row.measured.self_test == "failed" for row in rows)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
