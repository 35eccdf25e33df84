"""Figures 3, 4 and 5 of a run as SVG; the same numbers give the same bytes."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rism.evaluation.ablate.grid import MAPS, TAUS, FeatureSetting, MapSetting
from rism.evaluation.ablate.scoring import Outcome

_SHOWN = ("oIoU", "mIoU")
_COLOURS = {"shallow": "tab:green", "deep": "tab:blue", "all": "tab:orange"}
_STYLES = {"CAM": ":", "RAM": "-"}
_CELLS_WITH_NUMBERS = 120
_RULES: Any = {"svg.hashsalt": "rism", "svg.fonttype": "none", "font.size": 9, "axes.grid": True}


def plots(outcome: Outcome) -> dict[str, bytes]:
    """Draw all figures, by the names of their files."""
    found = {}
    with mpl.rc_context(_RULES):
        for name, draw in (
            ("figure3.svg", _subsets),
            ("figure3-blocks.svg", _each_block),
            ("figure4.svg", _heat),
            ("figure5.svg", _thresholds),
        ):
            out = io.BytesIO()
            draw(outcome).savefig(out, format="svg", metadata={"Date": None})
            found[name] = out.getvalue()
    return found


def _panels(width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, len(_SHOWN)))
    for axis, metric in zip(axes, _SHOWN, strict=True):
        axis.set_title(f"{metric} (%)")
    return figure, axes


def _subsets(outcome: Outcome) -> Figure:
    """CAM and RAM over steps, by kind of block."""
    grid = outcome.grid
    figure, axes = _panels(8, 3.2)
    for axis, metric in zip(axes, _SHOWN, strict=True):
        for blocks, colour in _COLOURS.items():
            for name in MAPS:
                if blocks not in grid.subsets:
                    continue
                settings = [MapSetting(step, blocks, name) for step in grid.timesteps]
                values = [outcome.percent(each, metric) for each in settings]
                look: Any = {"marker": "o", "markersize": 3, "color": colour}
                label = f"{name}, {blocks}"
                axis.plot(grid.timesteps, values, _STYLES[name], label=label, **look)
        axis.set_xticks(grid.timesteps)
        axis.set_xlabel("denoising step")
    axes[0].legend(fontsize=7)
    return figure


def _each_block(outcome: Outcome) -> Figure:
    """CAM and RAM of every block alone, a line for each step."""
    grid = outcome.grid
    count = grid.double + grid.single
    figure, axes = _panels(8, 3.2)
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(grid.timesteps)))
    for axis, metric in zip(axes, _SHOWN, strict=True):
        for step, colour in zip(grid.timesteps, shades, strict=True):
            for name in MAPS:
                settings = [MapSetting(step, str(block), name) for block in range(count)]
                values = [outcome.percent(each, metric) for each in settings]
                label = f"{name}, step {step}"
                axis.plot(range(count), values, _STYLES[name], color=colour, label=label)
        if grid.double:
            axis.axvline(grid.double - 0.5, color="grey", linewidth=0.8)
        axis.set_xlabel("block (double-stream, then single-stream)")
    axes[0].legend(fontsize=7)
    return figure


def _heat(outcome: Outcome) -> Figure:
    """The full method by block and step of its features."""
    grid = outcome.grid
    height = max(2.4, 0.25 * len(grid.blocks) + 1)
    figure, axes = _panels(8, min(height, 12))
    for axis, metric in zip(axes, _SHOWN, strict=True):
        settings = [
            FeatureSetting(step, block, grid.feature_site, grid.tau)
            for block, step in product(grid.blocks, grid.timesteps)
        ]
        values = np.array([outcome.percent(each, metric) for each in settings])
        values = values.reshape(len(grid.blocks), len(grid.timesteps))
        mesh = axis.pcolormesh(values, cmap="viridis", edgecolors="face")
        if values.size > _CELLS_WITH_NUMBERS:
            figure.colorbar(mesh, ax=axis)
        axis.grid(visible=False)
        axis.set_xticks(np.arange(len(grid.timesteps)) + 0.5, [str(t) for t in grid.timesteps])
        axis.set_yticks(np.arange(len(grid.blocks)) + 0.5, [str(b) for b in grid.blocks])
        axis.set_xlabel("denoising step")
        axis.set_ylabel("block")
        if values.size <= _CELLS_WITH_NUMBERS:
            middle = (values.min() + values.max()) / 2
            for (row, column), value in np.ndenumerate(values):
                look: Any = {"ha": "center", "va": "center", "fontsize": 7}
                look["color"] = "white" if value < middle else "black"
                axis.text(column + 0.5, row + 0.5, f"{value:.1f}", **look)
    return figure


def _thresholds(outcome: Outcome) -> Figure:
    """The full method by the threshold of its region."""
    default = outcome.grid.default()
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    axis = figure.subplots()
    for metric, marker in zip(_SHOWN, "os", strict=True):
        values = [outcome.percent(replace(default, tau=tau), metric) for tau in TAUS]
        axis.plot(TAUS, values, marker=marker, label=metric)
    axis.set_xticks(TAUS)
    axis.set_xlabel("tau")
    axis.set_ylabel("%")
    axis.legend()
    return figure
