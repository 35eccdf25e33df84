"""What tests of Step1X-Edit share: small random checkpoints, and something to look at."""

import json
from pathlib import Path

import numpy as np

from benchmarks.synthetic.step1x_checkpoint import write_diffusers, write_original
from benchmarks.synthetic.step1x_tensors import SMALL
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.families.step1x.model import Step1XModel

VERSIONS = ("1.0", "1.1", "1.2")
# Sizes for a CPU; the text before an instruction has about its published number of tokens.
SETTINGS = {
    "size_level": 96,
    "max_sequence_length": 96,
    "min_pixels": 16 * 28 * 28,
    "max_pixels": 36 * 28 * 28,
    "precision": "fp32",
}
DROP = {"1.0": 210, "1.1": 210, "1.2": 88}


def make_step1x(
    folder: Path,
    version: str,
    *,
    layout: str | None = None,
    settings: dict[str, object] | None = None,
) -> Path:
    """Write a checkpoint: 1.0 and 1.1 as their makers do, 1.2 as diffusers does, unless told."""
    layout = layout or ("diffusers" if version == "1.2" else "original")
    own: dict[str, object] = SETTINGS | {"drop_tokens": DROP[version]}
    if layout == "original":
        write_original(folder, SMALL, version=version)
        own["connector_heads"] = SMALL.connector_heads
    else:
        write_diffusers(folder, SMALL, version=version)
    (folder / "rism.json").write_text(json.dumps(own | (settings or {})))
    return folder


def open_step1x(path: Path) -> Step1XModel:
    """Open a checkpoint by the version that its files say."""
    model = open_model(find_checkpoint(str(path)))
    assert isinstance(model, Step1XModel)
    return model


def picture(width: int, height: int) -> np.ndarray:
    """Blocks of colour: (H, W, 3) uint8."""
    rng = np.random.default_rng(width)
    coarse = rng.integers(0, 255, (7, 9, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 7 // height, np.arange(width) * 9 // width
    return np.ascontiguousarray(coarse[rows][:, columns])
