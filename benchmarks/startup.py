"""Whole processes: `rism --help` and `rism run` with the built-in bundle, and its stages."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import repeat
from rism.runtime import Segmenter

PICTURE, EXPRESSION = Path("examples/street.png"), "the green van"


def run(*, runs: int = 7) -> dict[str, object]:
    """Median wall time of the two commands, of an empty Python, and the stages of one picture."""
    with tempfile.TemporaryDirectory() as folder:
        mask = str(Path(folder) / "mask.png")

        def command(*arguments: str) -> None:
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

        python = repeat(lambda: command("-c", "pass"), runs=runs)
        usage = repeat(lambda: command("-m", "rism", "--help"), runs=runs)
        picture = ("-m", "rism", "run", str(PICTURE), EXPRESSION, "-o", mask, "-q")
        whole = repeat(lambda: command(*picture, "--provider", "cpu"), runs=runs)
    segmenter = Segmenter.from_bundle(provider="cpu")
    first = dict(segmenter.segment(PICTURE, EXPRESSION).timings_ms)
    fresh = Segmenter.from_bundle(provider="cpu")
    fresh.segment(PICTURE, "the cat")
    loading = repeat(lambda: Segmenter.from_bundle(provider="cpu"), runs=runs)
    return {
        "python": python.to_json_dict(),
        "help": usage.to_json_dict(),
        "run": whole.to_json_dict(),
        "load_bundle": loading.to_json_dict(),
        "stages_ms": first,
    }


def report(result: dict[str, dict[str, float]]) -> str:
    """A short table."""
    stages = "  ".join(f"{name} {ms:.1f}" for name, ms in result["stages_ms"].items())
    return "\n".join(
        [
            "whole processes (median)",
            f"  python -c pass   {result['python']['median_s']:6.3f} s",
            f"  rism --help      {result['help']['median_s']:6.3f} s  (bar: 0.3 s)",
            f"  rism run         {result['run']['median_s']:6.3f} s  (bar: 1.5 s)",
            f"  of it, loading   {result['load_bundle']['median_s']:6.3f} s",
            f"  first picture, ms: {stages}",
        ]
    )
