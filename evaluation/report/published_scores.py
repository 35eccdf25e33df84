"""What was published for the same datasets, in percent (arXiv 2605.13122)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOURCE = "arXiv 2605.13122"
_STEP1X, _KLEIN = "Step1X-Edit", "FLUX.2-klein 9B"

# Of refcoco, refcoco+ (unc) and refcocog (umd), split by split; table 1.
_SPLITS = {
    "refcoco": ("unc", ("val", "testA", "testB")),
    "refcoco+": ("unc", ("val", "testA", "testB")),
    "refcocog": ("umd", ("val", "test")),
}
_OIOU = {
    _STEP1X: (53.94, 58.10, 49.60, 44.38, 49.30, 40.06, 51.23, 50.86),
    _KLEIN: (50.13, 52.99, 46.10, 40.17, 43.25, 36.06, 46.90, 46.26),
    "RefAM": (46.91, 52.30, 43.88, 38.57, 42.66, 34.90, 45.53, 44.45),
    "HybridGL": (41.81, 44.52, 38.50, 35.74, 41.43, 30.90, 42.47, 42.97),
}
_MIOU = {
    _STEP1X: (57.56, 60.34, 53.76, 48.50, 52.37, 44.28, 54.52, 54.25),
    _KLEIN: (54.02, 56.09, 50.22, 44.15, 46.72, 40.25, 50.62, 50.47),
    "RefAM": (57.24, 59.78, 53.32, 43.59, 47.28, 38.77, 47.11, 48.35),
    "HybridGL": (49.48, 53.37, 45.19, 43.40, 49.13, 37.17, 51.25, 51.59),
}
# (oIoU, mIoU) on the three val splits; tables 2 and A2, all of Step1X-Edit.
_VAL = {
    f"{_STEP1X}, no refinement": ((51.91, 55.79), (41.06, 44.39), (48.92, 52.43)),
    f"{_STEP1X}, RAM > 0.5": ((49.56, 53.36), (40.23, 43.82), (47.24, 51.04)),
    f"{_STEP1X}, CAM > 0.5": ((33.02, 39.44), (26.83, 32.03), (32.82, 40.11)),
}


@dataclass(frozen=True)
class Published:
    """A row of the paper: model and variant, with oIoU and mIoU in percent."""

    name: str
    oiou: float
    miou: float


def published(dataset: Mapping[str, Any]) -> list[Published]:
    """Return the paper's figures, if any, for a "source", "split_by" and "split" of `rism eval`."""
    source, split = dataset.get("source"), dataset.get("split")
    if source not in _SPLITS or dataset.get("split_by") != _SPLITS[source][0]:
        return []
    if split not in _SPLITS[source][1]:
        return []
    names = list(_SPLITS)
    before = sum(len(_SPLITS[name][1]) for name in names[: names.index(source)])
    at = before + _SPLITS[source][1].index(split)
    found = [Published(name, _OIOU[name][at], _MIOU[name][at]) for name in _OIOU]
    if split == "val":
        row = names.index(source)
        found += [Published(name, *figures[row]) for name, figures in _VAL.items()]
    return found
