"""What was measured: on the screen as it comes, in a file after each figure.

A run that is cut short leaves what it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.capture.models import Case
from benchmarks.capture.pytorch import Figure
from benchmarks.capture.variants import BASELINE, FUSED, VARIANTS, VECTORS
from benchmarks.harness.measure import environment
from benchmarks.results import save

__all__ = ["TARGETS", "Outcome", "Report"]

TARGETS = {VECTORS: 1.15, FUSED: 1.12}
# Where less is asked: at 512, what is beside attention weighs more.
_TARGETS_AT = {(FUSED, 512): 1.08}
_REFERENCES = ("paper", "paper mean")
# Table A1: one pass of the transformer on an A100, arXiv 2605.13122.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "9b@1024": {"gpu": "A100", "median_s": 1.49302, "memory_gb": 22.27},
    "step1x-1.0@512": {"gpu": "A100", "median_s": 0.60378, "memory_gb": 25.31},
}
_PACKAGES = ("onnxruntime-gpu", "torch", "triton", "diffusers", "onnx", "onnx-ir", "onnxscript")

Outcome = Figure | str
"""What was measured, or why nothing was."""


class Report:
    """The figures so far.

    Args:
        device: "cpu" or "cuda".
        precision: by its name.
        variants: that will be measured.
        file: to write; None for none.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, device: str, precision: str, variants: list[str], file: Path | None) -> None:
        self._file, self._gpu = file, device == "cuda"
        self._cases: list[dict[str, Any]] = []
        self._targets: list[dict[str, object]] = []
        self._baselines: dict[str, Figure] = {}
        self._reference: dict[str, npt.NDArray[Any]] = {}
        self._results: dict[str, object] = {
            "what": "one forward pass of the transformer, random weights, batch of one",
            "device": device,
            "precision": precision,
            "baseline": BASELINE,
            "variants": {name: VARIANTS[name].what for name in variants},
            "cases": self._cases,
            "targets": self._targets,
            "environment": environment(packages=_PACKAGES, gpu=self._gpu),
        }
        self._write()
        print(f"{'case':<16}{'engine':<13}{'variant':<19}{'ms':>10}{'x no capture':>14}{'GiB':>8}")

    def begin(self, case: Case) -> None:
        """Start another model or size."""
        spec, published = case.spec(), _PUBLISHED.get(str(case))
        self._cases.append(
            {
                "case": str(case),
                "side_px": case.side_px,
                "tokens": case.tokens,
                "real_prompt_tokens": case.sized.real_tokens or case.tokens["prompt"],
                "blocks": {"double": spec.double_blocks, "single": spec.single_blocks},
                "width": spec.feature_dim,
                "heads": case.sized.heads,
                "feature_block": spec.feature_block,
                "published": published,
                "results": [],
            }
        )
        self._baselines.clear()
        self._reference.clear()
        if published is not None:
            print(
                "{case}: published, {gpu}: {ms:.2f} ms, {memory_gb} GB".format(
                    case=case, ms=published["median_s"] * 1e3, **published
                ),
                flush=True,
            )

    def note(self, **facts: object) -> None:
        """Say more about the case."""
        self._cases[-1].update(facts)

    def add(self, engine: str, variant: str, outcome: Outcome) -> None:
        """Take one measurement; the baseline's comes before the others of its engine."""
        row: dict[str, object] = {"engine": engine, "variant": variant}
        if isinstance(outcome, str):
            row["not_run"] = outcome
        else:
            if variant == BASELINE:
                self._baselines[engine] = outcome
            if variant in _REFERENCES and not self._reference:
                self._reference.update(outcome.outputs)
            row |= _figures(outcome, self._baselines.get(engine))
            row["differs_from_paper"] = _differences(outcome.outputs, self._reference)
            if variant in TARGETS:
                self._judge(engine, variant, row)
        self._cases[-1]["results"].append(row)
        self._write()
        print(_line(self._cases[-1]["case"], row), flush=True)

    def count(self, case: Case, flop: Mapping[str, int]) -> None:
        """Say what arithmetic there was, of one pass of each variant, and how fast it went."""
        [own] = [each for each in self._cases if each["case"] == str(case)]
        own["flop"] = dict(flop)
        print(f"{case}: {flop[BASELINE] / 1e12:.4g} TFLOP with {BASELINE}", flush=True)
        for row in own["results"]:
            counted = flop.get(row["variant"])
            if counted is not None and "median_s" in row:
                row["flop_per_s"] = counted / row["median_s"]
                name = f"{row['engine']} {row['variant']}"
                print(f"  {name:<32}{row['flop_per_s'] / 1e12:10.4g} TFLOP/s", flush=True)
        self._write()

    def end(self) -> None:
        """Say whether the target is met, and what the machine was like at the end."""
        self._results["environment"] = environment(packages=_PACKAGES, gpu=self._gpu)
        self._write()
        for target in self._targets:
            verdict = "met" if target["met"] else "missed"
            print(
                f"target: {target['case']} {target['engine']} {target['variant']} "
                f"{target['times_no_capture']:.3f} x {BASELINE}, at most {target['at_most']}: "
                f"{verdict}"
            )

    def _judge(self, engine: str, variant: str, row: Mapping[str, object]) -> None:
        ratio, side = row["times_no_capture"], self._cases[-1]["side_px"]
        most = _TARGETS_AT.get((variant, side), TARGETS[variant])
        if isinstance(ratio, float):
            self._targets.append(
                {
                    "case": self._cases[-1]["case"],
                    "engine": engine,
                    "variant": variant,
                    "times_no_capture": ratio,
                    "at_most": most,
                    "met": ratio <= most,
                }
            )

    def _write(self) -> None:
        save(self._file, self._results)


def _figures(figure: Figure, baseline: Figure | None) -> dict[str, object]:
    """Time and memory, each with its ratio to the baseline's in the same engine."""
    memory = figure.memory_bytes
    found: dict[str, object] = {
        **figure.timing.to_json_dict(),
        "times_no_capture": None,
        "memory_bytes": memory,
        "memory_times_no_capture": None,
    }
    if baseline is not None:
        found["times_no_capture"] = figure.timing.median / baseline.timing.median
        if memory is not None and baseline.memory_bytes:
            found["memory_times_no_capture"] = memory / baseline.memory_bytes
    return found | figure.notes


def _differences(
    found: Mapping[str, npt.NDArray[Any]], reference: Mapping[str, npt.NDArray[Any]]
) -> dict[str, float]:
    """Largest difference by output, over the reference's largest value."""
    return {
        name: float(np.abs(found[name] - wanted).max() / np.abs(wanted).max())
        for name, wanted in reference.items()
        if name in found
    }


def _line(case: str, row: Mapping[str, Any]) -> str:
    start = f"{case:<16}{row['engine']:<13}{row['variant']:<19}"
    if "not_run" in row:
        return f"{start}  {row['not_run']}"
    ratio, memory = row["times_no_capture"], row["memory_bytes"]
    return (
        f"{start}{row['median_s'] * 1e3:10.2f}"
        f"{'-' if ratio is None else format(ratio, '.3f'):>14}"
        f"{'-' if memory is None else format(memory / 2**30, '.2f'):>8}"
    )
