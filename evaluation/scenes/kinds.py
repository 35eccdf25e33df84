"""Eighteen kinds of things as vector shapes, and their colours.

All coordinates are in the unit square, x to the right and y down. The paint ``"main"`` is the
colour of the object, ``"shade"`` a darker tone of it, ``"clear"`` erases, and any other paint is a
fixed detail colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLE = 4
CACHED_SPRITE_MAX_PX = 96
_ALPHA_FLOOR, _ALPHA_CEILING = 24, 232
_SHADE_FACTOR = 0.74

DETAILS: dict[str, Rgb] = {
    "dark": (38, 38, 44),
    "hub": (176, 178, 182),
    "glass": (112, 142, 166),
    "bark": (112, 76, 46),
    "cream": (236, 222, 192),
    "stem": (62, 112, 58),
    "seed": (104, 70, 34),
    "beak": (92, 82, 70),
    "light": (246, 244, 238),
}

COLOURS: dict[str, tuple[Rgb, Rgb, Rgb]] = {
    "red": ((214, 32, 36), (196, 24, 32), (226, 48, 42)),
    "orange": ((246, 132, 18), (238, 120, 8), (250, 144, 36)),
    "yellow": ((250, 218, 30), (242, 208, 16), (252, 226, 60)),
    "green": ((42, 160, 58), (30, 146, 50), (58, 172, 66)),
    "blue": ((30, 92, 218), (24, 78, 202), (44, 106, 228)),
    "purple": ((128, 48, 176), (114, 40, 162), (140, 60, 188)),
    "pink": ((250, 136, 190), (244, 122, 180), (252, 150, 200)),
    "white": ((250, 250, 250), (242, 242, 246), (248, 246, 240)),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)


@dataclass(frozen=True)
class Shape:
    """One filled shape: ``points`` are vertices, or two corners for boxes and ellipses."""

    form: Literal["polygon", "ellipse", "box", "line"]
    paint: str
    points: tuple[Point, ...]
    width: float = 0.0  # line width, or corner radius of a box


def _poly(paint: str, *points: Point) -> Shape:
    return Shape("polygon", paint, points)


def _oval(paint: str, x0: float, y0: float, x1: float, y1: float) -> Shape:
    return Shape("ellipse", paint, ((x0, y0), (x1, y1)))


def _disc(paint: str, x: float, y: float, radius: float) -> Shape:
    return _oval(paint, x - radius, y - radius, x + radius, y + radius)


def _box(paint: str, x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Shape:
    return Shape("box", paint, ((x0, y0), (x1, y1)), radius)


def _line(paint: str, width: float, *points: Point) -> Shape:
    return Shape("line", paint, points, width)


def _arc(
    x: float, y: float, radius_x: float, radius_y: float, start: float, stop: float
) -> tuple[Point, ...]:
    """Points of an elliptic arc from ``start`` to ``stop`` degrees (0 is right, 90 is down)."""
    angles = [math.radians(start + (stop - start) * step / 16) for step in range(17)]
    return tuple((x + radius_x * math.cos(a), y + radius_y * math.sin(a)) for a in angles)


def _wheels(y: float, radius: float, *xs: float) -> tuple[Shape, ...]:
    tyres = tuple(_disc("dark", x, y, radius) for x in xs)
    return tyres + tuple(_disc("hub", x, y, radius * 0.42) for x in xs)


def _star() -> Shape:
    points = []
    for step in range(10):
        radius = 0.52 if step % 2 == 0 else 0.225
        angle = math.radians(-90 + 36 * step)
        points.append((0.5 + radius * math.cos(angle), 0.53 + radius * math.sin(angle)))
    return _poly("main", *points)


def _heart() -> Shape:
    points = []
    for step in range(48):
        t = 2 * math.pi * step / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + x / 32, 0.45 - y / 32))
    return _poly("main", *points)


def _petals() -> tuple[Shape, ...]:
    angles = (math.radians(-90 + 60 * step) for step in range(6))
    return tuple(
        _disc("main", 0.5 + 0.23 * math.cos(a), 0.39 + 0.23 * math.sin(a), 0.155) for a in angles
    )


_VAN_BODY = (
    (0.0, 0.14), (0.03, 0.1), (0.62, 0.1), (0.82, 0.42), (0.98, 0.48), (1.0, 0.54), (1.0, 0.78),
    (0.0, 0.78),
)  # fmt: skip
_CAR_BODY = (
    (0.0, 0.54), (0.04, 0.48), (0.18, 0.46), (0.33, 0.26), (0.64, 0.26), (0.8, 0.47), (0.97, 0.52),
    (1.0, 0.58), (1.0, 0.7), (0.0, 0.7),
)  # fmt: skip
_STALK = (
    (0.38, 0.5), (0.62, 0.5), (0.68, 0.92), (0.62, 0.96), (0.38, 0.96), (0.32, 0.92),
)  # fmt: skip
_CUP_BODY = (
    (0.0, 0.14), (0.76, 0.14), (0.68, 0.88), (0.62, 0.94), (0.14, 0.94), (0.08, 0.88),
)  # fmt: skip

# The shapes of each kind, back to front.
_SHAPES: dict[str, tuple[Shape, ...]] = {
    "van": (
        _poly("main", *_VAN_BODY),
        _poly("glass", (0.55, 0.18), (0.62, 0.18), (0.75, 0.42), (0.55, 0.42)),
        _line("shade", 0.025, (0.49, 0.16), (0.49, 0.72)),
        *_wheels(0.78, 0.115, 0.2, 0.78),
    ),
    "car": (
        _poly("main", *_CAR_BODY),
        _poly("glass", (0.28, 0.46), (0.37, 0.32), (0.47, 0.32), (0.47, 0.46)),
        _poly("glass", (0.52, 0.46), (0.52, 0.32), (0.61, 0.32), (0.71, 0.46)),
        *_wheels(0.7, 0.115, 0.22, 0.78),
    ),
    "bus": (
        _box("main", 0.0, 0.2, 1.0, 0.72, 0.06),
        *(_box("glass", x, 0.29, x + 0.13, 0.45) for x in (0.05, 0.23, 0.41, 0.59, 0.77)),
        _line("shade", 0.03, (0.0, 0.56), (0.99, 0.56)),
        *_wheels(0.72, 0.085, 0.2, 0.8),
    ),
    "truck": (
        _box("dark", 0.04, 0.62, 0.98, 0.72),
        _poly("main", (0.0, 0.16), (0.68, 0.16), (0.58, 0.62), (0.1, 0.62)),
        _line("shade", 0.03, (0.23, 0.22), (0.26, 0.58)),
        _line("shade", 0.03, (0.45, 0.22), (0.42, 0.58)),
        _poly("main", (0.68, 0.34), (0.9, 0.34), (1.0, 0.5), (1.0, 0.72), (0.66, 0.72)),
        _poly("glass", (0.76, 0.4), (0.87, 0.4), (0.94, 0.51), (0.76, 0.51)),
        *_wheels(0.74, 0.11, 0.16, 0.4, 0.84),
    ),
    "boat": (
        _line("dark", 0.035, (0.46, 0.0), (0.46, 0.72)),
        _poly("main", (0.51, 0.02), (0.51, 0.62), (0.94, 0.62)),
        _poly("main", (0.41, 0.12), (0.41, 0.62), (0.1, 0.62)),
        _poly("main", (0.0, 0.7), (1.0, 0.7), (0.82, 0.98), (0.18, 0.98)),
        _poly("shade", (0.05, 0.78), (0.95, 0.78), (0.91, 0.84), (0.09, 0.84)),
    ),
    "dog": (
        _line("main", 0.085, (0.12, 0.46), (0.04, 0.2)),
        *(_box("main", x, 0.55, x + 0.11, 0.92, 0.03) for x in (0.09, 0.22, 0.48, 0.61)),
        _box("main", 0.08, 0.38, 0.73, 0.68, 0.12),
        _poly("main", (0.55, 0.5), (0.62, 0.2), (0.82, 0.3), (0.73, 0.6)),
        _box("main", 0.58, 0.1, 0.86, 0.38, 0.1),
        _box("main", 0.74, 0.22, 1.0, 0.38, 0.06),
        _oval("shade", 0.54, 0.1, 0.68, 0.44),
        _disc("dark", 0.965, 0.25, 0.035),
        _disc("dark", 0.78, 0.2, 0.03),
    ),
    "cat": (
        _line("main", 0.08, *_arc(0.74, 0.72, 0.16, 0.2, 90, -80)),
        _oval("main", 0.2, 0.4, 0.78, 1.0),
        _poly("main", (0.18, 0.3), (0.18, 0.0), (0.44, 0.14)),
        _poly("main", (0.78, 0.3), (0.78, 0.0), (0.52, 0.14)),
        _oval("main", 0.16, 0.1, 0.8, 0.54),
        _disc("dark", 0.36, 0.3, 0.042),
        _disc("dark", 0.6, 0.3, 0.042),
        _poly("dark", (0.44, 0.38), (0.52, 0.38), (0.48, 0.43)),
        _line("shade", 0.03, (0.48, 0.68), (0.48, 0.98)),
    ),
    "bird": (
        _line("beak", 0.04, (0.44, 0.7), (0.42, 0.92), (0.5, 0.92)),
        _line("beak", 0.04, (0.56, 0.7), (0.56, 0.92), (0.64, 0.92)),
        _poly("main", (0.3, 0.42), (0.3, 0.62), (0.0, 0.36), (0.03, 0.24)),
        _oval("main", 0.18, 0.3, 0.8, 0.78),
        _disc("main", 0.7, 0.28, 0.18),
        _poly("beak", (0.86, 0.2), (1.0, 0.3), (0.85, 0.36)),
        _poly("shade", (0.62, 0.42), (0.6, 0.6), (0.4, 0.66), (0.18, 0.5)),
        _disc("dark", 0.75, 0.24, 0.038),
    ),
    "fish": (
        _poly("main", (0.3, 0.5), (0.0, 0.2), (0.07, 0.5), (0.0, 0.8)),
        _poly("shade", (0.42, 0.3), (0.52, 0.12), (0.74, 0.3)),
        _poly("shade", (0.46, 0.7), (0.52, 0.84), (0.66, 0.7)),
        _oval("main", 0.2, 0.24, 1.0, 0.76),
        _line("shade", 0.03, *_arc(0.66, 0.5, 0.1, 0.2, -75, 75)),
        _disc("light", 0.85, 0.43, 0.055),
        _disc("dark", 0.86, 0.43, 0.032),
    ),
    "tree": (
        _box("bark", 0.42, 0.8, 0.58, 1.0),
        _poly("main", (0.5, 0.4), (0.92, 0.84), (0.08, 0.84)),
        _poly("main", (0.5, 0.18), (0.84, 0.6), (0.16, 0.6)),
        _poly("main", (0.5, 0.0), (0.76, 0.34), (0.24, 0.34)),
        _line("shade", 0.03, (0.28, 0.6), (0.72, 0.6)),
        _line("shade", 0.03, (0.34, 0.34), (0.66, 0.34)),
    ),
    "flower": (
        _line("stem", 0.05, (0.5, 0.5), (0.5, 0.99)),
        _poly("stem", (0.5, 0.95), (0.6, 0.82), (0.78, 0.79), (0.68, 0.92)),
        *_petals(),
        _disc("main", 0.5, 0.39, 0.2),
        _disc("seed", 0.5, 0.39, 0.11),
    ),
    "mushroom": (
        _poly("cream", *_STALK),
        _poly("main", *_arc(0.5, 0.6, 0.5, 0.56, 180, 360)),
        _disc("cream", 0.3, 0.38, 0.065),
        _disc("cream", 0.54, 0.22, 0.06),
        _disc("cream", 0.74, 0.42, 0.065),
    ),
    "house": (
        _box("shade", 0.72, 0.08, 0.83, 0.4),
        _box("main", 0.1, 0.42, 0.9, 0.98),
        _poly("shade", (0.5, 0.0), (1.0, 0.46), (0.0, 0.46)),
        _box("bark", 0.42, 0.64, 0.6, 0.98),
        _box("glass", 0.18, 0.56, 0.34, 0.72),
        _box("glass", 0.68, 0.56, 0.84, 0.72),
    ),
    "ball": (
        _disc("main", 0.5, 0.5, 0.5),
        _line("shade", 0.045, *_arc(0.02, 0.5, 0.34, 0.46, -66, 66)),
        _line("shade", 0.045, *_arc(0.98, 0.5, 0.34, 0.46, 114, 246)),
        _line("shade", 0.045, (0.5, 0.01), (0.5, 0.99)),
    ),
    "star": (_star(),),
    "heart": (_heart(),),
    "cup": (
        _oval("main", 0.56, 0.26, 1.0, 0.76),
        _oval("clear", 0.66, 0.37, 0.9, 0.65),
        _poly("main", *_CUP_BODY),
        _oval("main", 0.0, 0.04, 0.76, 0.24),
        _oval("dark", 0.07, 0.075, 0.69, 0.205),
    ),
    "umbrella": (
        _line("dark", 0.05, (0.5, 0.0), (0.5, 0.88)),
        _line("dark", 0.05, *_arc(0.41, 0.87, 0.09, 0.1, 0, 180)),
        _poly(
            "main",
            *_arc(0.5, 0.56, 0.5, 0.5, 180, 360),
            *_arc(0.8333, 0.56, 0.1667, 0.1, 360, 180),
            *_arc(0.5, 0.56, 0.1667, 0.1, 360, 180),
            *_arc(0.1667, 0.56, 0.1667, 0.1, 360, 180),
        ),
        _line("shade", 0.025, (0.5, 0.07), (0.34, 0.54)),
        _line("shade", 0.025, (0.5, 0.07), (0.66, 0.54)),
    ),
}
KIND_NAMES: tuple[str, ...] = tuple(sorted(_SHAPES))


def _paint(name: str, colour_rgb: Rgb) -> tuple[int, int, int, int]:
    if name == "clear":
        return (0, 0, 0, 0)
    red, green, blue = colour_rgb if name in ("main", "shade") else DETAILS[name]
    if name == "shade":
        red, green, blue = (int(channel * _SHADE_FACTOR) for channel in colour_rgb)
    return (red, green, blue, 255)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: Shape, *, scale: float, colour: Rgb) -> None:
    fill = _paint(shape.paint, colour)
    points = [(x * scale, y * scale) for x, y in shape.points]
    if shape.form == "polygon":
        draw.polygon(points, fill=fill)
    elif shape.form == "ellipse":
        draw.ellipse(points, fill=fill)
    elif shape.form == "box":
        draw.rounded_rectangle(points, radius=shape.width * scale, fill=fill)
    else:
        draw.line(points, fill=fill, width=max(1, round(shape.width * scale)), joint="curve")


def _render(kind: str, colour_rgb: Rgb, size_px: int) -> np.ndarray:
    """Draw one sprite facing right: (h, w, 4) uint8, read-only, longer side ``size_px``."""
    pad = SUPERSAMPLE
    big = size_px * SUPERSAMPLE
    canvas = Image.new("RGBA", (big + 2 * pad, big + 2 * pad), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for shape in _SHAPES[kind]:
        moved = tuple((x + pad / big, y + pad / big) for x, y in shape.points)
        shape = Shape(shape.form, shape.paint, moved, shape.width)
        _draw_shape(draw, shape, scale=float(big), colour=colour_rgb)
    cropped = canvas.crop(canvas.getchannel("A").getbbox())
    ratio = size_px / max(cropped.size)
    size = (max(1, round(cropped.width * ratio)), max(1, round(cropped.height * ratio)))
    small = cropped.convert("RGBa").resize(size, Image.Resampling.BOX).convert("RGBA")
    sprite = np.array(small)
    alpha = sprite[..., 3]
    alpha[alpha < _ALPHA_FLOOR] = 0
    alpha[alpha > _ALPHA_CEILING] = 255
    sprite = _crop_to_alpha(sprite)
    sprite.setflags(write=False)
    return sprite


def _crop_to_alpha(sprite: np.ndarray) -> np.ndarray:
    """Cut away empty borders of an RGBA sprite: (h, w, 4) uint8 to (h', w', 4) uint8."""
    rows = np.flatnonzero(sprite[..., 3].any(axis=1))
    columns = np.flatnonzero(sprite[..., 3].any(axis=0))
    return np.ascontiguousarray(sprite[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


_small_sprite = lru_cache(maxsize=6000)(_render)
_large_sprite = lru_cache(maxsize=48)(_render)


def draw_sprite(
    kind: str, colour_rgb: Sequence[int], *, size_px: int, flip: bool = False
) -> np.ndarray:
    """Draw ``kind`` in a main colour, tightly cropped; ``size_px`` is its longer side.

    Sprites face right; with ``flip`` they are mirrored.

    Returns:
        (h, w, 4) uint8 RGBA with straight alpha, read-only, shared through a cache.

    Raises:
        ValueError: The kind is unknown or the size is below 8.
    """
    if kind not in _SHAPES:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KIND_NAMES)}")
    if size_px < 8:
        raise ValueError(f"size_px must be at least 8, got {size_px}")
    colour = (int(colour_rgb[0]), int(colour_rgb[1]), int(colour_rgb[2]))
    cached = _small_sprite if size_px <= CACHED_SPRITE_MAX_PX else _large_sprite
    sprite = cached(kind, colour, size_px)
    return sprite[:, ::-1] if flip else sprite
