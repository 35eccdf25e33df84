"""Figures drawn, one image for each scenario, medians with their spread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import ScenarioError

_SCALES = {"s": (1e3, "ms"), "bytes": (1e-6, "MB"), "": (1, "")}


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw every scenario that has a figure.

    Args:
        results: as `--json` writes them.
        folder: made if it is not there.

    Returns:
        The files.

    Raises:
        ScenarioError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ScenarioError(
            "--plots needs matplotlib, which is not installed: pip install matplotlib"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, found in results["scenarios"].items():
        rows = [row for row in found["rows"] if row.get("median")]
        if not rows:
            continue
        rows = [row for row in rows if row["unit"] == rows[0]["unit"]]
        figure = Figure(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        scale, label = _SCALES[rows[0]["unit"]]
        medians = [row["median"] * scale for row in rows]
        spread = [
            [(row["median"] - row["min"]) * scale for row in rows],
            [(row["max"] - row["median"]) * scale for row in rows],
        ]
        colours = ["#999999" if row["row"] == found["baseline"] else "#1f77b4" for row in rows]
        labels = [f"{row['group']} {row['row']}".strip() for row in rows]
        axes.barh(labels, medians, xerr=spread, color=colours)
        axes.set_xlabel(label)
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.set_title(f"{name}: {found['what']}", fontsize=10)
        file = folder / f"{name.replace(' ', '_')}.png"
        figure.savefig(file, dpi=120)
        files.append(file)
    return files
