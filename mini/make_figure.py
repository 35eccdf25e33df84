"""Draw docs/result.png, image, CAM, RAM and mask of examples: `python -m mini.make_figure`."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rism.runtime import Segmentation, Segmenter, load_image
from rism.runtime.method.upsampling import upsample
from rism.runtime.result.labels import with_scale
from rism.runtime.result.rendering import SCALE_RGB, heatmap, overlay

SHOWN = ("street.png", "kind-2.png", "relation-1.png")
CELL_WH = (228, 171)
CAPTION_PX, GAP_PX = 22, 6


def _fitted(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail(CELL_WH, Image.Resampling.LANCZOS)
    return image


def _overlay(pixels: np.ndarray, result: Segmentation) -> np.ndarray:
    """Draw at the size of the cell, so that contours keep their width."""
    mask_hw = np.asarray(_fitted(result.mask_hw.astype(np.uint8) * 255)) > 127
    fitted = np.asarray(_fitted(pixels))
    return overlay(fitted, [replace(result, mask_hw=mask_hw)], labels=False)


def _cell(pixels: np.ndarray) -> Image.Image:
    fitted = _fitted(pixels)
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
    # One scale for both columns of attention, as wide as they are.
    scale = with_scale(np.empty((0, 2 * CELL_WH[0] + GAP_PX, 3), np.uint8), SCALE_RGB)
    size_wh = (4 * (CELL_WH[0] + GAP_PX), row_px * len(SHOWN) + len(scale))
    figure = Image.new("RGB", size_wh, "white")
    figure.paste(Image.fromarray(scale), (CELL_WH[0] + GAP_PX, row_px * len(SHOWN)))
    pen, font = ImageDraw.Draw(figure), ImageFont.load_default(13)
    for row, name in enumerate(SHOWN):
        pixels = load_image(args.examples / name)
        result = segmenter.segment(pixels, entries[name]["expression"])
        maps = [heatmap(pixels, upsample(m, result.plan)) for m in (result.coarse, result.refined)]
        cells = [pixels, *maps, _overlay(pixels, result)]
        sure = f"mask, confidence {result.confidence:.2f}"
        names = [f'"{result.expression}"', "coarse attention", "refined attention", sure]
        for column, (cell, caption) in enumerate(zip(cells, names, strict=True)):
            x, y = column * (CELL_WH[0] + GAP_PX), row * row_px
            pen.text((x + 4, y + 2), caption, fill="black", font=font)
            figure.paste(_cell(np.asarray(cell)), (x, y + CAPTION_PX))
    figure.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
