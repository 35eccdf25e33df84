"""Draw docs/result.png: `python -m mini.make_figure`. Picture, CAM, RAM and mask of examples."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rism.runtime import Segmenter, load_image
from rism.runtime.geometry import upsample
from rism.runtime.render import heatmap, overlay

SHOWN = ("street.png", "size-1.png", "relation-1.png")
CELL_WH = (240, 180)
CAPTION_PX, GAP_PX = 22, 6


def _cell(image: Image.Image) -> Image.Image:
    fitted = image.convert("RGB")
    fitted.thumbnail(CELL_WH, Image.Resampling.LANCZOS)
    cell = Image.new("RGB", CELL_WH, "white")
    cell.paste(fitted, ((CELL_WH[0] - fitted.width) // 2, (CELL_WH[1] - fitted.height) // 2))
    return cell


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/result.png"))
    parser.add_argument("--examples", type=Path, default=Path("examples"))
    args = parser.parse_args()
    entries = {e["image"]: e for e in json.loads((args.examples / "examples.json").read_text())}
    segmenter = Segmenter.from_bundle(provider="cpu")
    row_px = CELL_WH[1] + CAPTION_PX + GAP_PX
    figure = Image.new("RGB", (4 * (CELL_WH[0] + GAP_PX), row_px * len(SHOWN)), "white")
    pen, font = ImageDraw.Draw(figure), ImageFont.load_default(14)
    for row, name in enumerate(SHOWN):
        pixels = load_image(args.examples / name)
        result = segmenter.segment(pixels, entries[name]["expression"])
        maps = [heatmap(pixels, upsample(m, result.plan)) for m in (result.coarse, result.refined)]
        cells = [pixels, *maps, overlay(pixels, result.mask)]
        names = [f'"{result.expression}"', "coarse attention", "refined attention", "mask"]
        for column, (cell, caption) in enumerate(zip(cells, names, strict=True)):
            x, y = column * (CELL_WH[0] + GAP_PX), row * row_px
            pen.text((x + 4, y + 2), caption, fill="black", font=font)
            figure.paste(_cell(Image.fromarray(np.asarray(cell))), (x, y + CAPTION_PX))
    figure.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
