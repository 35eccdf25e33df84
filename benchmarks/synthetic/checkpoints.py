"""Random checkpoints of the published widths, with all blocks or with a few, by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from benchmarks.synthetic.flux2_checkpoint import SIZES, write_checkpoint
from benchmarks.synthetic.step1x_checkpoint import write_original
from benchmarks.synthetic.step1x_tensors import SMALL, STEP1X

MODELS = {
    "klein-4b": (SIZES["4b"].double, SIZES["4b"].single),
    "klein-9b": (SIZES["9b"].double, SIZES["9b"].single),
    "step1x-1.0": (STEP1X.double, STEP1X.single),
}
"""How many double-stream and single-stream blocks the published ones have."""


def write_model(
    folder: Path, name: str, blocks: tuple[int, int] | None = None, *, seed: int | None = 0
) -> None:
    """Write a checkpoint: Step1X-Edit 1.0 in its makers' layout, the others in diffusers'.

    Args:
        folder: must not exist.
        name: one of `MODELS`.
        blocks: double-stream and single-stream blocks; None for the published model. With a few,
            the encoders are cut to a few blocks as well.
        seed: of the weights; None for sparse files.
    """
    double, single = blocks or MODELS[name]
    settings: dict[str, object] = {}
    cut = blocks is not None and blocks != MODELS[name]
    if name.startswith("klein"):
        shape = replace(SIZES[name.removeprefix("klein-")], double=double, single=single)
        if cut:
            shape = replace(shape, text_blocks=4)
            settings = {"text_encoder_out_layers": [1, 2, 3], "feature_block": 1}
        write_checkpoint(folder, shape, seed=seed)
    else:
        sizes = replace(STEP1X, double=double, single=single)
        if cut:
            sizes = replace(sizes, vision_depth=2, vision_full=(1,), text_blocks=1, text_shards=1)
            sizes = replace(sizes, vocabulary=SMALL.vocabulary)
            settings = {"feature_block": 1}
        write_original(folder, sizes, version="1.0", seed=seed)
    if settings:
        (folder / "rism.json").write_text(json.dumps(settings))


def parse_blocks(text: str) -> tuple[int, int] | None:
    """Read "1+2" as (1, 2), and "all" as None."""
    if text == "all":
        return None
    double, single = text.split("+")
    return int(double), int(single)
