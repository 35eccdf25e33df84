"""Scenes of emoji on photographs, textures and drawn backgrounds, with exact masks.

A scene is determined by its seed and split. Training has its own seeds, styles and photographs;
the other splits have seeds of their own, and "held-out" also styles and photographs of its own.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from mini.assets import DRAWN, FOLDER, PACKAGES, SIDE
from mini.colours import colour_shares, hue_matrix
from mini.grounds import HELD_OUT_PHOTOS, PHOTOS, photo_crop, photographs, texture
from rism.evaluation.scenes.backgrounds import make_background

Rng = np.random.Generator
Size = tuple[int, int]  # width and height in pixels
Split = Literal["training", "tuning", "test", "held-out"]
_Rows = dict[str, list[tuple[int, str]]]  # of sprites by kind: place in the file, and style
MIN_VISIBLE = 0.6
OURS = 0.15  # share of training's scenes that show our own drawings alone, which are few
SMALLEST, LARGEST = 0.08, 0.70  # of the image's mean side
_LOOKS = {package.style: package.look for package in PACKAGES} | {DRAWN: ""}
HELD_OUT = tuple(package.style for package in PACKAGES if package.held_out)
# Shares of scenes of 1 to 8 things.
_COUNTS = (0.08, 0.17, 0.21, 0.19, 0.14, 0.1, 0.06, 0.05)


@dataclass(frozen=True, eq=False)
class Thing:
    """One thing of a scene.

    Attributes:
        kind, style: of `kinds.txt` and of `packages.json`, or "drawn".
        colours: share of its pixels per colour name, (11,) float32.
        box: of the visible part, (x0, y0, x1, y1) in fractions of the image.
        side: longer side of the whole thing, as a share of the image's mean side.
        mask_hw: (h, w) bool, where most of what is seen is this thing.
        visible: share of it that is seen.
    """

    kind: str
    style: str
    colours: np.ndarray
    box: tuple[float, float, float, float]
    side: float
    mask_hw: np.ndarray
    visible: float

    @property
    def look(self) -> str:
        """The word for its style, or ""."""
        return _LOOKS[self.style]

    @property
    def centre(self) -> tuple[float, float]:
        """Of the box, in fractions of the image."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, eq=False)
class _Layer:
    pixels: np.ndarray  # (sh, sw, 4) uint8, premultiplied
    x: int
    y: int
    side: float  # its longer side before it was turned, as a share of the image's mean side


@dataclass(frozen=True, eq=False)
class _Plan:
    kind: str
    style: str
    sprite: int
    matrix: np.ndarray  # (3, 3), of its colours


class EmojiScene:
    """An image (h, w, 3) uint8 with things, back to front.

    `shown` are kinds that the photograph behind them shows.
    """

    def __init__(
        self,
        ground: np.ndarray,
        layers: list[_Layer],
        things: list[Thing],
        shown: Sequence[str],
        finish: "Finish",
    ) -> None:
        self.things, self.shown = things, tuple(shown)
        self._ground, self._layers, self.finish = ground, layers, finish
        self.image_hwc = self.without(())

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._ground.shape[1], self._ground.shape[0]

    def without(self, removed: Sequence[int]) -> np.ndarray:
        """Render the scene without some of its things: (h, w, 3) uint8."""
        image = self._ground.copy()
        for index, layer in enumerate(self._layers):
            if index not in removed:
                _blend(image, layer)
        return self.finish(image)


@dataclass(frozen=True)
class Finish:
    """What the camera does to the whole image; the same for each rendering of a scene."""

    gain: np.ndarray  # (3,)
    gamma: float
    blur: float
    noise: float
    quality: int  # of JPEG; 0 is none
    seed: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Do it to an image (h, w, 3) uint8."""
        ramp = np.linspace(0, 1, 256, dtype=np.float32)[:, None] ** self.gamma * self.gain * 255
        table = np.clip(ramp + 0.5, 0, 255).astype(np.uint8)
        image = np.stack([table[:, c][image[..., c]] for c in range(3)], axis=-1)
        if self.blur:
            height, width = image.shape[:2]
            small = Image.fromarray(image).resize(
                (max(8, round(width / self.blur)), max(8, round(height / self.blur))),
                Image.Resampling.BILINEAR,
            )
            image = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        if self.noise:
            rng = np.random.default_rng(self.seed)
            grain = rng.standard_normal(image.shape, np.float32) * self.noise
            image = np.clip(image + grain + 0.5, 0, 255).astype(np.uint8)
        if self.quality:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "JPEG", quality=self.quality)
            image = np.asarray(Image.open(stream))
        return image


def _blend(image: np.ndarray, layer: _Layer) -> None:
    height, width = image.shape[:2]
    rows, columns, part = _inside(layer, width, height)
    below = image[rows, columns].astype(np.uint16) * (255 - part[..., 3:].astype(np.uint16))
    image[rows, columns] = part[..., :3] + ((below + 127) // 255).astype(np.uint8)


def _inside(layer: _Layer, width: int, height: int) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns of the image that a layer covers, and the part of it that is inside."""
    sh, sw = layer.pixels.shape[:2]
    x0, y0 = max(layer.x, 0), max(layer.y, 0)
    x1, y1 = min(layer.x + sw, width), min(layer.y + sh, height)
    part = layer.pixels[y0 - layer.y : y1 - layer.y, x0 - layer.x : x1 - layer.x]
    return slice(y0, y1), slice(x0, x1), part


class SceneMaker:
    """Makes scenes from the sprites in `folder` (`python -m mini.assets`)."""

    def __init__(self, folder: Path = FOLDER) -> None:
        if not (folder / "sprites.json").exists():
            raise SystemExit(
                f"{folder}: no sprites; make them with python -m mini.assets --out {folder}"
            )
        self._sprites = np.load(folder / "sprites.npy", mmap_mode="r")
        rows = json.loads((folder / "sprites.json").read_text())
        self._rows: dict[bool, _Rows] = {False: {}, True: {}}
        for index, (style, kind, _) in enumerate(rows):
            self._rows[style in HELD_OUT].setdefault(kind, []).append((index, style))
        self._ours = {
            kind: ours
            for kind, found in self._rows[False].items()
            if (ours := [row for row in found if row[1] == DRAWN])
        }
        self._photos = {
            held: photographs(names) for held, names in ((False, PHOTOS), (True, HELD_OUT_PHOTOS))
        }

    def scene(
        self,
        seed: Sequence[int],
        *,
        split: Split,
        size_wh: Size,
        least: int = 1,
        least_px: float = 10.0,
    ) -> EmojiScene:
        """Draw the scene of a seed, of `least` to 8 things as far as they find a place.

        A thing's longer side has at least `least_px` pixels.

        The same arguments give the same scene.
        """
        rng = np.random.default_rng([get_args(Split).index(split), *seed])
        ground, shown = self.ground(rng, size_wh, split)
        layers: list[_Layer] = []
        plans: list[_Plan] = []
        count = max(least, 1 + int(rng.choice(len(_COUNTS), p=_COUNTS)))
        for plan in self._cast(rng, count, self._rows_for(rng, split)):
            layer = self._place(rng, plan, size_wh, count, layers, least_px)
            if layer is not None:
                layers.append(layer)
                plans.append(plan)
        things = _things(layers, plans, size_wh)
        if not things:
            return self.scene(
                [*seed, 0], split=split, size_wh=size_wh, least=least, least_px=least_px
            )
        return EmojiScene(ground, layers, things, shown, finish(rng))

    def draw_sprites(self, rng: Rng, count: int, split: Split) -> tuple[np.ndarray, list[str]]:
        """Rows (count,) and kinds of sprites: a kind first, then a style, then a sprite."""
        rows, kinds = [], []
        for _ in range(count):
            found = self._rows_for(rng, split)
            kind = _one_of(rng, found)
            rows.append(_one_row(rng, found[kind])[0])
            kinds.append(kind)
        return np.array(rows), kinds

    def _rows_for(self, rng: Rng, split: Split) -> _Rows:
        """The sprites of a split, or in training sometimes our own drawings alone."""
        if split == "training" and rng.random() < OURS:
            return self._ours
        return self._rows[split == "held-out"]

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Sprites (n, SIDE, SIDE, 4) uint8, premultiplied."""
        chosen: np.ndarray = self._sprites[rows]
        return chosen

    def _cast(self, rng: Rng, count: int, rows: _Rows) -> Iterator[_Plan]:
        """What to place, in random order; often several of one kind."""
        chosen = [_one_of(rng, rows) for _ in range(count)]
        if count > 1 and rng.random() < 0.6:
            copies = min(count, int(rng.choice([2, 3, 4], p=[0.6, 0.28, 0.12])))
            chosen[:copies] = chosen[:1] * copies
        same_sprite = rng.random() < 0.4
        first: dict[str, tuple[int, str]] = {}
        for place in rng.permutation(count):
            kind = chosen[place]
            row = _one_row(rng, rows[kind])
            if same_sprite:
                row = first.setdefault(kind, row)
            turn = rng.uniform(0.5, 5.8) if rng.random() < 0.45 else rng.uniform(-0.15, 0.15)
            matrix = hue_matrix(turn, rng.uniform(0.75, 1.25), rng.uniform(0.75, 1.15))
            yield _Plan(kind, row[1], row[0], matrix)

    def _place(
        self, rng: Rng, plan: _Plan, size_wh: Size, count: int, below: list[_Layer], least_px: float
    ) -> _Layer | None:
        """The sprite with its place; None if no place was found."""
        mean_side = float(np.sqrt(size_wh[0] * size_wh[1]))
        top = min(LARGEST, 1.25 / np.sqrt(count))
        low = min(top, max(SMALLEST, least_px / mean_side))
        side = float(top * (low / top) ** (0.75 * rng.random()))
        angle = rng.normal(0, 0.2) if rng.random() < 0.8 else rng.uniform(-np.pi, np.pi)
        size_px, flip = round(side * mean_side), bool(rng.random() < 0.5)
        pixels = _warped(self._sprites[plan.sprite], size_px, angle, flip)
        pixels[..., :3] = np.clip(pixels[..., :3] @ plan.matrix.T, 0, pixels[..., 3:])
        pixels = (pixels + 0.5).astype(np.uint8)
        overlap = 0.3 if rng.random() < 0.35 else 0.0
        slack = 0.25 if rng.random() < 0.15 else 0.0
        sh, sw = pixels.shape[:2]
        area = max(1, int(np.count_nonzero(pixels[..., 3] > 127)))
        for _ in range(12):
            x, y = (
                int(rng.integers(-int(slack * own), max(room - own + int(slack * own), 0) + 1))
                for own, room in ((sw, size_wh[0]), (sh, size_wh[1]))
            )
            layer = _Layer(pixels, x, y, side)
            if np.count_nonzero(_inside(layer, *size_wh)[2][..., 3] > 127) < 0.75 * area:
                continue
            if all(_hidden(layer, each) <= overlap for each in below):
                return layer
        return None

    def ground(self, rng: Rng, size_wh: Size, split: Split) -> tuple[np.ndarray, Sequence[str]]:
        """A background (h, w, 3) uint8, and the kinds that it shows."""
        draw = rng.random()
        if draw < 0.5:
            photos = self._photos[split == "held-out"]
            pixels, shown = photos[int(rng.integers(len(photos)))]
            return photo_crop(rng, pixels, size_wh), shown
        if draw < 0.75:
            return make_background(rng, size_wh=size_wh), ()
        return texture(rng, size_wh), ()


def _one_of(rng: Rng, rows: _Rows) -> str:
    kinds = sorted(rows)
    return kinds[int(rng.integers(len(kinds)))]


def _one_row(rng: Rng, rows: list[tuple[int, str]]) -> tuple[int, str]:
    """A style first, then one of its sprites: our drawings come in eight colours."""
    styles = sorted({style for _, style in rows})
    style = styles[int(rng.integers(len(styles)))]
    options = [row for row in rows if row[1] == style]
    return options[int(rng.integers(len(options)))]


def _warped(sprite: np.ndarray, side: int, angle: float, flip: bool) -> np.ndarray:
    """Scale, turn and flip a sprite, and trim it: (sh, sw, 4) float32, premultiplied."""
    image = Image.fromarray(np.ascontiguousarray(sprite))
    factor = SIDE // max(2 * side, 1) if side < SIDE // 2 else 1
    if factor > 1:
        image = image.reduce(factor)
    scale = image.width / side * (-1 if flip else 1), image.width / side
    c, s = np.cos(angle), np.sin(angle)
    out = int(np.ceil(side * (abs(c) + abs(s)))) + 2
    half, middle = out / 2, image.width / 2
    a, b, d, e = scale[0] * c, scale[0] * s, -scale[1] * s, scale[1] * c
    data = (a, b, middle - (a + b) * half, d, e, middle - (d + e) * half)
    turned = np.asarray(
        image.transform((out, out), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    )
    solid = turned[..., 3] > 8
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    return turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)


def _hidden(layer: _Layer, below: _Layer) -> float:
    """Share of a lower layer's box that a layer's box covers."""
    width = min(layer.x + layer.pixels.shape[1], below.x + below.pixels.shape[1]) - max(
        layer.x, below.x
    )
    height = min(layer.y + layer.pixels.shape[0], below.y + below.pixels.shape[0]) - max(
        layer.y, below.y
    )
    least = min(each.pixels.shape[0] * each.pixels.shape[1] for each in (below, layer))
    return float(max(width, 0) * max(height, 0) / least)


def _things(layers: list[_Layer], plans: list[_Plan], size_wh: Size) -> list[Thing]:
    """What is seen of each layer; empty if one is hidden too much."""
    width, height = size_wh
    owner = np.full((height, width), -1, np.int8)
    for index, layer in enumerate(layers):
        rows, columns, part = _inside(layer, width, height)
        owner[rows, columns][part[..., 3] > 127] = index
    things = []
    for index, (layer, plan) in enumerate(zip(layers, plans, strict=True)):
        mask = owner == index
        whole = int(np.count_nonzero(layer.pixels[..., 3] > 127))
        visible = int(np.count_nonzero(mask)) / max(1, whole)
        if visible < MIN_VISIBLE or not mask.any():
            return []
        y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = x[0] / width, y[0] / height, (x[-1] + 1) / width, (y[-1] + 1) / height
        colours = colour_shares(layer.pixels)
        things.append(Thing(plan.kind, plan.style, colours, box, layer.side, mask, visible))
    return things


def finish(rng: Rng) -> Finish:
    """Draw what a camera does to an image."""
    gain = rng.uniform(0.8, 1.1) * rng.uniform(0.94, 1.06, 3)
    gamma = float(np.exp(rng.normal(0, 0.15)))
    blur = rng.uniform(1.2, 2.2) if rng.random() < 0.2 else 0.0
    noise = rng.uniform(1, 10) if rng.random() < 0.3 else 0.0
    quality = int(rng.integers(35, 92)) if rng.random() < 0.3 else 0
    return Finish(gain.astype(np.float32), gamma, blur, noise, quality, int(rng.integers(1 << 30)))
