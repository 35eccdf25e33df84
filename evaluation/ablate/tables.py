"""Tables of a run, one for each table and figure of the paper: CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rism.evaluation.ablate.grid import (
    MAPS,
    SITE_NAMES,
    SITES,
    TAUS,
    FeatureSetting,
    MapSetting,
    Setting,
)
from rism.evaluation.ablate.scoring import Outcome
from rism.evaluation.metrics.iou import METRICS

CHOICES = "choices"

Row = tuple[tuple[object, ...], Setting]

_PAPER_SETS = ("RefCOCO", "RefCOCO+", "RefCOCOg")
# oIoU / mIoU of Step1X-Edit on the val splits (arXiv 2605.13122, tables 2 and 3).
_PAPER = {
    "CAM > 0.5": ("33.02 / 39.44", "26.83 / 32.03", "32.82 / 40.11"),
    "RAM > 0.5": ("49.56 / 53.36", "40.23 / 43.82", "47.24 / 51.04"),
    "FSL": ("53.94 / 57.56", "44.38 / 48.50", "51.23 / 54.52"),
    "Block": ("52.07 / 56.67", "41.25 / 45.83", "47.93 / 53.25"),
    "AdaLN": ("53.63 / 57.34", "43.24 / 47.42", "49.89 / 53.82"),
    "MMSA": ("53.94 / 57.56", "44.38 / 48.50", "51.23 / 54.52"),
}


@dataclass(frozen=True)
class Table:
    """Rows of settings: the values of the columns that describe each, and the setting.

    The name is that of its file, the title that of the section.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_csv(self, summaries: Mapping[Setting, Mapping[str, float]]) -> str:
        """Return the table as CSV with every metric, shares from 0 to 1."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*self.columns, "n", *METRICS])
        for values, setting in self.rows:
            found = summaries[setting]
            numbers = [f"{found[name]:.6f}" if name in found else "" for name in METRICS]
            writer.writerow([*values, found["n"], *numbers])
        return out.getvalue()

    def to_markdown(self, summaries: Mapping[Setting, Mapping[str, float]]) -> str:
        """Return the table as Markdown in percent, with the paper's figures for the same rows."""
        beside = _PAPER_SETS if all(values[0] in _PAPER for values, _ in self.rows) else ()
        paper = tuple(f"paper, {name} val, oIoU / mIoU" for name in beside)
        lines = [[*self.columns, *METRICS, *paper]]
        lines.append(["---"] * len(self.columns) + ["---:"] * (len(METRICS) + len(paper)))
        for values, setting in self.rows:
            found = summaries[setting]
            numbers = [f"{100 * found[name]:.2f}" if name in found else "" for name in METRICS]
            theirs = _PAPER[str(values[0])] if beside else ()
            lines.append([*map(str, values), *numbers, *theirs])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def tables(outcome: Outcome) -> list[Table]:
    """Return the tables of a run: 2, 3 and the figures' numbers."""
    grid, default = outcome.grid, outcome.grid.default()
    modules: dict[str, Setting] = {f"{name} > 0.5": MapSetting(0, "all", name) for name in MAPS}
    sites = [site for site in SITES if site in grid.sites]
    maps = [each for timestep in grid.timesteps for each in grid.maps(timestep)]
    features = [
        FeatureSetting(timestep, block, site, grid.tau)
        for site, block, timestep in product(sites, grid.blocks, grid.timesteps)
    ]
    table3 = f"Table 3: features of block {grid.feature_block} from three places"
    figure3 = "Figure 3: blocks that attention is summed over, and steps"
    return [
        Table("table2", "Table 2: modules", ("mask",), _rows(modules | {"FSL": default})),
        Table(
            "table3",
            table3,
            ("features",),
            _rows({SITE_NAMES[site]: replace(default, site=site) for site in sites}),
        ),
        Table(
            "figure3",
            figure3,
            ("step", "blocks", "map"),
            tuple(((each.timestep, each.blocks, each.map), each) for each in maps),
        ),
        Table(
            "figure4",
            "Figure 4: block and step of the features",
            ("site", "block", "step"),
            tuple(((each.site, each.block, each.timestep), each) for each in features),
        ),
        Table(
            "figure5",
            "Figure 5: threshold of the region",
            ("tau",),
            _rows({tau: replace(default, tau=tau) for tau in TAUS}),
        ),
        Table(
            CHOICES,
            "What may be left out",
            ("blocks", "noisy grid"),
            tuple(
                ((each.blocks, each.noisy_grid), each)
                for noisy_grid in grid.noisy_grids
                for each in grid.choices(noisy_grid)
            ),
        ),
    ]


def _rows(settings: Mapping[Any, Setting]) -> tuple[Row, ...]:
    return tuple(((name,), setting) for name, setting in settings.items())
