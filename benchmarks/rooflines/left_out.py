"""Operations of the transformer as exports leave more and more out, counted in its modules."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.capture.models import CaptureCase, count_flop
from benchmarks.capture.variants import VARIANTS
from benchmarks.harness.markdown import markdown_table
from benchmarks.rooflines.stages import TERA
from rism.export.names import PRESET_CHOICES
from rism.export.precision import PRECISIONS

CASES = ("step1x-1.0@512", "step1x-1.0@1024", "4b@1024", "9b@1024")


def ways(case: CaptureCase) -> dict[str, CaptureCase]:
    """Return what is counted, by name: each row leaves out more than what `paper` does."""
    paper = replace(case, shared_padding=case.sized.real_tokens is not None)
    blocks, noisy_grid = PRESET_CHOICES["fast"]
    return {
        "every row of padding": case,
        "`--preset paper`": paper,
        f"`--capture-blocks {blocks}`": replace(paper, blocks=blocks),
        f"`--noisy-grid {noisy_grid}`": replace(paper, noisy_grid=noisy_grid),
        "`--preset fast`": replace(paper, blocks=blocks, noisy_grid=noisy_grid),
    }


def table(cases: tuple[str, ...] = CASES) -> str:
    """Operations with capture as exported, in TFLOP, as Markdown."""
    variant, precision = VARIANTS["vectors"], PRECISIONS["bf16"]
    columns = [
        {
            name: count_flop(way, variant, precision) / TERA
            for name, way in ways(CaptureCase.parse(text)).items()
        }
        for text in cases
    ]
    rows = [[name, *(f"{column[name]:.3g}" for column in columns)] for name in columns[0]]
    head = ["TFLOP of the transformer with capture", *cases]
    return markdown_table(head, rows)
