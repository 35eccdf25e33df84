"""Backgrounds of scenes: photographs that packages ship, and textures."""

from pathlib import Path

import numpy as np
from PIL import Image

from mini.colours import hue_matrix

Rng = np.random.Generator
Size = tuple[int, int]  # width and height in pixels

# Photographs, and the kinds that they show: no question about these is asked in front of them.
PHOTOS = {
    "astronaut.png": ("helmet", "rocket"),
    "brick.png": (),
    "camera.png": ("camera",),
    "coffee.png": ("coffee", "spoon"),
    "coins.png": ("coin",),
    "grass.png": (),
    "gravel.png": ("rock",),
    "hubble_deep_field.jpg": ("star",),
    "ihc.png": (),
    "moon.png": ("moon",),
    "retina.jpg": ("eye",),
    "clock_motion.png": ("alarm clock",),
    "page.png": (),
    "motorcycle_left.png": ("motorcycle",),
    "flower.jpg": ("daisy",),
    "text.png": (),
}
HELD_OUT_PHOTOS = {
    "china.jpg": ("house", "castle"),
    "chelsea.png": ("cat",),
    "rocket.jpg": ("rocket",),
}


def photographs(names: dict[str, tuple[str, ...]]) -> list[tuple[np.ndarray, tuple[str, ...]]]:
    """The photographs (h, w, 3) uint8 of these names, each with the kinds that it shows."""
    import skimage
    import sklearn

    folders = (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.__file__).parent / "datasets/images",
    )
    found = []
    for name, shown in names.items():
        file = next(folder / name for folder in folders if (folder / name).exists())
        image = Image.open(file).convert("RGB")
        image.thumbnail((640, 640))
        found.append((np.asarray(image), shown))
    return found


def photo_crop(rng: Rng, pixels: np.ndarray, size_wh: Size) -> np.ndarray:
    """A part of a photograph at a size, half of them mirrored or in other colours."""
    height, width = pixels.shape[:2]
    scale = min(width / size_wh[0], height / size_wh[1]) * rng.uniform(0.25, 1.0)
    w, h = scale * size_wh[0], scale * size_wh[1]
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    image = Image.fromarray(pixels).resize(
        size_wh, Image.Resampling.BILINEAR, (x, y, x + w, y + h), reducing_gap=1.5
    )
    out = np.asarray(image, np.float32)
    if rng.random() < 0.5:
        out = out[:, ::-1]
    if rng.random() < 0.5:
        out = (
            out @ hue_matrix(rng.uniform(-3.1, 3.1), rng.uniform(0.3, 1.3), rng.uniform(0.7, 1.2)).T
        )
    clipped: np.ndarray = np.clip(out + 0.5, 0, 255)
    return clipped.astype(np.uint8)


def texture(rng: Rng, size_wh: Size) -> np.ndarray:
    """Two or three colours of any kind, mixed by smooth noise of one or two sizes, or plain."""
    first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    if rng.random() < 0.4:
        second = first + rng.uniform(-30, 30, 3).astype(np.float32)
    weight = np.zeros(size_wh[::-1], np.float32)
    for _ in range(int(rng.integers(1, 3))):
        cells = int(rng.integers(1, 30))
        grid = Image.fromarray(rng.random((cells + 1, cells + 1), np.float32))
        resample = Image.Resampling.NEAREST if rng.random() < 0.2 else Image.Resampling.BICUBIC
        weight += np.asarray(grid.resize(size_wh, resample))
    weight = np.clip(weight / max(float(weight.max()), 1e-6), 0, 1)
    mixed: np.ndarray = np.clip(first + weight[..., None] * (second - first) + 0.5, 0, 255)
    return mixed.astype(np.uint8)
