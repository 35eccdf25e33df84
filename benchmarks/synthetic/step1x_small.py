"""`python -m benchmarks.synthetic.step1x_small`: a small random Step1X-Edit, files to mask.

Writes a checkpoint in the makers' layout (1.2: in diffusers'), prints how far the exporter's
modules are from what was published, exports it with every capture mode through the parity gate,
and runs the bundle on a picture with onnxruntime alone. The mask means nothing, the weights are
random; that it comes out of every step is what is shown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.synthetic.step1x_checkpoint import SMALL, write_diffusers, write_original
from benchmarks.synthetic.step1x_parity import TextComparison, block_differences, random_inputs
from rism.export import ExportOptions, export_bundle
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.families.step1x.model import Step1XModel
from rism.runtime import Segmenter

__all__ = ["DROP", "SETTINGS", "make_step1x", "open_step1x"]

# Sizes for a CPU; the text before an instruction has about its published number of tokens.
SETTINGS = {
    "size_level": 96,
    "max_sequence_length": 96,
    "min_pixels": 16 * 28 * 28,
    "max_pixels": 36 * 28 * 28,
    "precision": "fp32",
}
DROP = {"1.0": 210, "1.1": 210, "1.2": 88}
_SIDES = ((16, 16), (96, 80), (112, 80), (64, 144), (208, 48), (48, 176), (272, 32), (320, 240))
_EXPRESSIONS = ("the green van", "the man's hat", 'the sign "STOP!" on the left')


def make_step1x(
    folder: Path,
    version: str,
    *,
    layout: str | None = None,
    settings: dict[str, object] | None = None,
) -> Path:
    """Write a checkpoint: 1.0 and 1.1 as their makers do, 1.2 as diffusers does, unless told.

    Args:
        folder: must not exist.
        version: "1.0", "1.1" or "1.2".
        layout: "original" or "diffusers".
        settings: of rism.json, instead of `SETTINGS`.
    """
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


def main() -> None:
    """Write, compare, export, run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.synthetic.step1x_small", description=__doc__
    )
    parser.add_argument("--version", choices=[*DROP], default="1.0")
    parser.add_argument("--picture", type=Path, default=Path("examples/street.png"))
    parser.add_argument("--expression", default="the green van")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint, bundle and mask there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        checkpoint = make_step1x(folder / "checkpoint", args.version)
        _compare(open_step1x(checkpoint))
        options = ExportOptions(captures=("vectors", "matrices", "scores"))
        print("\ngraphs in onnxruntime, against the reference model")
        print(export_bundle(str(checkpoint), folder / "bundle", options).parity_table())
        segmenter = Segmenter.from_bundle(folder / "bundle", provider="cpu")
        result = segmenter.segment(args.picture, args.expression)
        target = folder / "mask.png"
        Image.fromarray(result.mask_hw.astype(np.uint8) * 255).save(target)
        spent = ", ".join(f"{name} {ms:.0f}" for name, ms in result.timings_ms.items())
        print(f'"{result.instruction}": mask of {result.mask_hw.shape}, milliseconds: {spent}')


def _compare(model: Step1XModel) -> None:
    print(f"Step1X-Edit {model.version.name}, small and random: modules in float32")
    for grid_hw in ((4, 5), (7, 3)):
        given = random_inputs(model, grid_hw)
        for name, error in block_differences(model, given).items():
            print(f"{f'grid {grid_hw}':<22}{name:<20}{error:.2e}  (limit 1e-05)")
    text = TextComparison(model)
    rng = np.random.default_rng(0)
    for width, height in _SIDES:
        picture = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        worst: dict[str, float] = {}
        for expression in _EXPRESSIONS:
            for name, error in text.differences(picture, expression).items():
                worst[name] = max(error, worst.get(name, 0.0))
        for name, error in worst.items():
            print(f"{f'picture {width} x {height}':<22}{name:<20}{error:.2e}")


if __name__ == "__main__":
    main()
