"""Draw docs/result.png, image, CAM, RAM and mask of examples: `python -m mini.make_figure`.

`--photographs` draws docs/photographs.png, of photographs that scikit-image ships.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mini.grounds import HELD_OUT_PHOTOS, PHOTOS, photographs
from rism.runtime import Segmentation, Segmenter, load_image
from rism.runtime.method.upsampling import upsample
from rism.runtime.result.labels import with_scale
from rism.runtime.result.rendering import SCALE_RGB, heatmap, overlay

SHOWN = ("street.png", "kind-2.png", "relation-1.png")
# In the public domain. The first two are behind no training scene, the others are behind many.
PHOTOGRAPHS = {
    "chelsea.png": "the cat",
    "rocket.jpg": "the rocket",
    "coffee.png": "the cup",
    "camera.png": "the camera",
    "astronaut.png": "the helmet",
}
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


def _examples(folder: Path) -> Iterator[tuple[np.ndarray, str]]:
    entries = {e["image"]: e for e in json.loads((folder / "examples.json").read_text())}
    for name in SHOWN:
        yield load_image(folder / name), entries[name]["expression"]


def _photographs() -> Iterator[tuple[np.ndarray, str]]:
    shipped = PHOTOS | HELD_OUT_PHOTOS
    for name, expression in PHOTOGRAPHS.items():
        [(pixels, _)] = photographs({name: shipped[name]})
        yield pixels, expression


def draw(shown: list[tuple[np.ndarray, str]]) -> Image.Image:
    """A row for each image (h, w, 3) uint8 and expression."""
    segmenter = Segmenter.from_bundle(provider="cpu")
    row_px = CELL_WH[1] + CAPTION_PX + GAP_PX
    # One scale for both columns of attention, as wide as they are.
    scale = with_scale(np.empty((0, 2 * CELL_WH[0] + GAP_PX, 3), np.uint8), SCALE_RGB)
    size_wh = (4 * (CELL_WH[0] + GAP_PX), row_px * len(shown) + len(scale))
    figure = Image.new("RGB", size_wh, "white")
    figure.paste(Image.fromarray(scale), (CELL_WH[0] + GAP_PX, row_px * len(shown)))
    pen, font = ImageDraw.Draw(figure), ImageFont.load_default(13)
    for row, (pixels, expression) in enumerate(shown):
        result = segmenter.segment(pixels, expression, always=True)
        maps = [heatmap(pixels, upsample(m, result.plan)) for m in (result.coarse, result.refined)]
        cells = [pixels, *maps, _overlay(pixels, result)]
        sure = "no confidence"
        if result.confidence is not None:
            sure = f"confidence {result.confidence:.2f}"
        names = [f'"{result.expression}"', "coarse attention", "refined attention", f"mask, {sure}"]
        for column, (cell, caption) in enumerate(zip(cells, names, strict=True)):
            x, y = column * (CELL_WH[0] + GAP_PX), row * row_px
            pen.text((x + 4, y + 2), caption, fill="black", font=font)
            figure.paste(_cell(np.asarray(cell)), (x, y + CAPTION_PX))
    return figure


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--examples", type=Path, default=Path("examples"))
    parser.add_argument("--photographs", action="store_true")
    args = parser.parse_args()
    name, shown = "result", _examples(args.examples)
    if args.photographs:
        name, shown = "photographs", _photographs()
    draw(list(shown)).save(args.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
