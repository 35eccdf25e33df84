"""`python -m benchmarks.gpu_results [FILE|DIR...]`: what `gpu_run` brought back, into the pages.

Files of one run become benchmarks/results/gpu-<card>-<date>.json; then the tables of
docs/performance.md and README's line are made anew from all such files, each figure beside its
floor and the paper's. Without files only the pages are made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.capture.block import BASELINE
from benchmarks.gpu_run import CASES
from benchmarks.gpu_steps import SCHEMA
from benchmarks.harness.markdown import markdown_table
from benchmarks.rooflines import stages
from benchmarks.rooflines.gpus import GPUS, known_gpu
from benchmarks.rooflines.probe_bounds import SHAPES, WAYS, cost, floor_s
from rism.runtime.atomic_write import write_atomically
from rism.runtime.errors import InputError, RismError, one_line

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_BEGIN, _END = "<!-- gpu_results: begin -->\n", "<!-- gpu_results: end -->"
_NOTHING = "No GPU has run this yet."

# The whole of the published code, on one A100 (arXiv 2605.13122, table of latencies): ms, GB.
PAPER = {CASES[0]: (603.78, 25.31), CASES[1]: (1493.02, 22.27)}
NAMES = {CASES[0]: "Step1X-Edit 1.0 at 512", CASES[1]: "FLUX.2-klein-9B at 1024"}
_FLOOR_CASES = {
    CASES[0]: stages.StageCase(stages.STEP1X, 512),
    CASES[1]: stages.StageCase(stages.KLEIN_9B, 1024),
}
_FLOOR_STAGES = {
    "no capture": "DiT without capture",
    "vectors": "DiT, capture by two attentions",
    "fused": "DiT, capture by the fused probe",
}

Result = dict[str, Any]


def merge(paths: Sequence[Path]) -> Result:
    """Bring the files of one run together.

    Args:
        paths: JSON files of `gpu_run`, or folders of them.

    Returns:
        {"schema", "small", "device", "steps": {step: figures}}, compiled variants of one model in
        one step.

    Raises:
        InputError: a file is not one of `gpu_run`'s, or the environment is in none of them.
    """
    files = [
        file
        for path in paths
        for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])
    ]
    steps: dict[str, Any] = {}
    result: Result = {"schema": SCHEMA, "small": False, "device": "cuda", "steps": steps}
    for file in files:
        try:
            found = json.loads(file.read_text())
            if found["schema"] != SCHEMA:
                raise ValueError(f"its schema is {found['schema']}")
            for step, each in found["steps"].items():
                steps[step] = {**steps.get(step, {}), **each["found"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"'{file}' cannot be read ({one_line(error, limit=120)}), expected a JSON that "
                "benchmarks/gpu_run.py wrote"
            ) from None
        result |= {key: found[key] for key in ("small", "device")}
    if "environment" not in steps:
        raise InputError(
            f"none of {len(files)} files says where it was measured: expected found.json of "
            "benchmarks/gpu_run.py among them"
        )
    return result


def card(result: Result) -> str:
    """Name of the GPU, "H200" for those whose datasheet is known."""
    gpu = result["steps"]["environment"].get("gpu") or {"name": "CPU"}
    return known_gpu(gpu["name"]) or str(gpu["name"])


@dataclass(frozen=True)
class Bar:
    """Something that was asked for."""

    what: str
    value: float | None
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Met, missed, or not measured."""
        if self.value is None:
            return "not measured"
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "met" if met else "**missed**"


def bars(result: Result) -> Iterator[Bar]:
    """Hold a result against what was asked for."""
    steps = result["steps"]
    for case, ratio, limit_ms in ((CASES[0], 1.08, 90.0), (CASES[1], 1.12, 330.0)):
        name, ways = NAMES[case], steps.get(f"probe {case}", {}).get("ways", {})
        errors = [row[e] for row in ways.values() for e in ("error_a", "error_ta") if e in row]
        yield Bar(f"{name}: largest error of a probe", max(errors, default=None), 1e-3)
        repeats = [row["repeats"] for row in ways.values() if "repeats" in row]
        unlike = repeats.count(False) if repeats else None
        yield Bar(f"{name}: probes that do not repeat to the bit", unlike, 0)
        fused, bare = _fastest(steps, case, "fused"), _fastest(steps, case, "no capture")
        over = fused / bare if fused and bare else None
        yield Bar(f"{name}: capture over no capture", over, ratio)
        yield Bar(f"{name}: one pass", fused and fused * 1e3, limit_ms, " ms")
        literal = _row(steps, case, "eager", "paper").get("median_s")
        faster = literal / fused if literal and fused else None
        yield Bar(f"{name}: literal method over ours", faster, 4.0, at_least=True)
        peak = _row(steps, case, "eager", "fused").get("peak_over_weights_bytes")
        yield Bar(f"{name}: peak over weights", peak and peak / 1e9, 1.5, " GB")
    for name, found in steps.get("post-processing", {}).items():
        if isinstance(found, dict) and "kernels" in found:
            yield Bar(f"post-processing of {name}", found["kernels"]["median_s"] * 1e3, 0.3, " ms")


def _row(steps: dict[str, Any], case: str, how: str, variant: str) -> dict[str, Any]:
    for step in (f"{how} {case}", f"{how} {case}, paper"):
        row = steps.get(step, {}).get(variant)
        if isinstance(row, dict):
            return row
    return {}


def _ways(steps: dict[str, Any], case: str, variant: str) -> dict[str, float]:
    """Seconds of a pass by how it was run: "eager", "CUDA graph", "torch.compile" and both."""
    eager, compiled = (_row(steps, case, how, variant) for how in ("eager", "compiled"))
    found = {
        "eager": eager.get("median_s"),
        "CUDA graph": eager.get("cuda_graph", {}).get("median_s"),
        "torch.compile": compiled.get("median_s"),
        "both": compiled.get("cuda_graph", {}).get("median_s"),
    }
    return {way: seconds for way, seconds in found.items() if seconds is not None}


def _fastest(steps: dict[str, Any], case: str, variant: str) -> float | None:
    return min(_ways(steps, case, variant).values(), default=None)


def page(results: Sequence[Result]) -> str:
    """Return what stands between the marks of docs/performance.md."""
    return "\n\n".join(_of_card(each) for each in results) + "\n" if results else f"{_NOTHING}\n"


def _of_card(result: Result) -> str:
    steps = result["steps"]
    there = steps["environment"]
    packages = there["packages"]
    head = (
        f"**{(there.get('gpu') or {'name': 'CPU'})['name']}**, {there['date']}, commit "
        f"{there['commit']}: PyTorch {packages['torch']}, Triton {packages['triton']}; a copy of "
        f"2 GB {there['copy_bytes_per_s'] / 1e12:.2f} TB/s, a bfloat16 product of 8192 "
        f"{there['product_flop_per_s'] / 1e12:.0f} TFLOP/s. Random weights."
    )
    parts = [head, *(_passes(result, case) for case in CASES), _probes(result), _kernels(result)]
    verdicts = [
        [each.what, _number(each.value, each.unit), _number(each.limit, each.unit), each.verdict]
        for each in bars(result)
    ]
    parts.append(markdown_table(["bar", "measured", "asked", ""], verdicts))
    failures = list(_failures(steps))
    if failures:
        parts.append("Not measured:\n\n" + "\n".join(f"- {each}" for each in failures))
    return "\n\n".join(part for part in parts if part)


def _passes(result: Result, case: str) -> str:
    steps, rows = result["steps"], []
    gpu = GPUS.get(card(result))
    least = {stage.name: stage for stage in stages.stages(_FLOOR_CASES[case])}
    columns = ("eager", "CUDA graph", "torch.compile", "both")
    for variant in ("no capture", "fused", "vectors", "fused blind", "paper mean", "paper"):
        ways = _ways(steps, case, variant)
        if not ways:
            continue
        bare = _fastest(steps, case, "no capture")
        floor = (
            least[_FLOOR_STAGES[variant]].seconds(gpu) if gpu and variant in _FLOOR_STAGES else None
        )
        peak = _row(steps, case, "eager", variant).get("peak_over_weights_bytes")
        rows.append(
            [
                variant,
                *(_number(ways.get(column), scale=1e3) for column in columns),
                _number(bare and min(ways.values()) / bare),
                _number(floor, scale=1e3),
                _number(peak, scale=1e-9),
            ]
        )
    if not rows:
        return ""
    milliseconds, gigabytes = PAPER[case]
    title = (
        f"{NAMES[case]}, one pass, ms (the paper's whole method on an A100: {milliseconds} ms, "
        f"{gigabytes} GB)"
    )
    head = [title, *columns, "x no capture", "floor", "GB over weights"]
    return markdown_table(head, rows)


def _probes(result: Result) -> str:
    rows = []
    gpu = GPUS.get(card(result))
    for case in CASES:
        ways = result["steps"].get(f"probe {case}", {}).get("ways", {})
        main = ways.get(BASELINE, {}).get("median_s")
        for way, row in ways.items():
            if "median_s" not in row:
                continue
            name, _, few = way.partition(", ")
            weighted = int(few.split()[0]) if few else None
            floor = None
            if gpu is not None and name in WAYS:
                shape = SHAPES[case]
                floor = floor_s(cost(shape, name, weighted=weighted), gpu) / shape.blocks
            rows.append(
                [
                    f"{NAMES[case]}: {way}",
                    _number(row["median_s"], scale=1e3),
                    _number(main and row["median_s"] / main),
                    _number(floor, scale=1e3),
                    _number(row.get("error_a")),
                    _number(row.get("error_ta")),
                    {True: "yes", False: "**no**", None: ""}[row.get("repeats")],
                ]
            )
    head = ["attention of one block", "ms", "x main", "floor", "error a", "error Ta", "repeats"]
    return markdown_table(head, rows) if rows else ""


def _kernels(result: Result) -> str:
    rows = []
    for name, found in result["steps"].get("post-processing", {}).items():
        if not (isinstance(found, dict) and "kernels" in found):
            continue
        ours = found["kernels"]["median_s"]
        floor = sum(each["floor_s"] for each in found["launches"])
        times = [(f"{name}, to masks on the host", ours, floor)]
        times += [(f"— {x['kernel']}", x["median_s"], x["floor_s"]) for x in found["launches"]]
        times.append((f"{name}, NumPy on the host", found["host"]["median_s"], None))
        rows += [[what, *(_number(each, scale=1e6) for each in both)] for what, *both in times]
    return markdown_table(["post-processing", "microseconds", "floor"], rows) if rows else ""


def _failures(steps: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, found in steps.items():
        if isinstance(found, dict):
            if "failed" in found:
                yield f"{before}{name}: {one_line(found['failed'], limit=200)}"
            if found.get("exit_code", 0) != 0:
                last = one_line(found["said"].strip().rpartition("\n")[2], limit=200)
                yield f"{before}{name}: exit code {found['exit_code']}, {last}"
            yield from _failures(found, f"{before}{name}: ")


def _number(value: float | None, unit: str = "", *, scale: float = 1.0) -> str:
    return "" if value is None else f"{value * scale:.3g}{unit}"


def readme_line(results: Sequence[Result]) -> str:
    """Return README's line: the last result's passes beside the paper's."""
    if not results:
        return f"{_NOTHING}\n"
    result = results[-1]
    said = []
    for case in CASES:
        seconds = _fastest(result["steps"], case, "fused")
        if seconds is not None:
            said.append(
                f"{NAMES[case]} takes {seconds * 1e3:.0f} ms (the paper, A100: {PAPER[case][0]})"
            )
    date = result["steps"]["environment"]["date"]
    return (
        f"On one {card(result)}, bf16, random weights, {date}, a pass with capture of "
        f"{' and of '.join(said) or 'neither model was measured'}.\n"
    )


def fill(text: str, between: str) -> str:
    """Return a page with what stands between its marks made anew.

    Raises:
        InputError: the page has no marks.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise InputError(f"the page has no line '{_BEGIN.strip()}' with '{_END}' after it")
    return f"{before}{begin}{between}{end}{after}"


def read_results(folder: Path) -> list[Result]:
    """Read what was committed, oldest first."""
    found = [json.loads(file.read_text()) for file in folder.glob("gpu-*.json")]
    return sorted(found, key=lambda each: str(each["steps"]["environment"]["date"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the result and the pages."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_results", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "files", nargs="*", type=Path, help="JSON files of one run, or their folder"
    )
    args = parser.parse_args(arguments)
    try:
        if args.files:
            result = merge(args.files)
            if result["small"] or result["device"] != "cuda":
                raise InputError("this is a rehearsal, expected a run on a GPU without --small")
            date = result["steps"]["environment"]["date"]
            name = f"gpu-{card(result).lower().replace(' ', '-')}-{date}.json"
            write_atomically(RESULTS / name, (json.dumps(result, indent=1) + "\n").encode())
        results = read_results(RESULTS)
        for file, text in (
            (ROOT / "docs" / "performance.md", page(results)),
            (ROOT / "README.md", readme_line(results)),
        ):
            write_atomically(file, fill(file.read_text(), text).encode())
    except RismError as error:
        print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
