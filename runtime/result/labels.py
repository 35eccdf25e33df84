"""Text on drawings: labels of masks, and the scale of a heat map.

The font is Pillow's default, which has Latin letters only.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rism.runtime.arrays import Uint8
from rism.runtime.result.segmentation import Segmentation

Rgb: TypeAlias = tuple[int, int, int]
_Box: TypeAlias = tuple[int, int, int, int]

_FONT_PART = 30  # letters are this part of the shorter side, within `_FONT_PX`
_FONT_PX = (11, 40)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SCALE_OF = "attention"


def label_text(result: Segmentation, number: int) -> str:
    """Return the label of a mask, its expression and confidence: "the green van 0.98".

    The number replaces an expression in letters that the font does not have, as "#1".
    """
    name = result.expression if _has_letters(result.expression) else f"#{number}"
    if result.reason is not None:
        return f"{name}: not found"
    sure = "" if result.confidence is None else f" {result.confidence:.2f}"
    return f"{name}{sure}{'' if result.doubt is None else ' doubtful'}"


def draw_labels(
    drawn_hwc: Uint8, labels: Sequence[tuple[str, Rgb, tuple[int, int, int, int] | None]]
) -> None:
    """Write labels at their boxes without overlap; labels without room are left out.

    Args:
        drawn_hwc: (H, W, 3), drawn on.
        labels: text, background colour, and box (x0, y0, x1, y1) of the object; without one the
            label is written at the bottom.
    """
    height, width = drawn_hwc.shape[:2]
    font = _font(_font_px(height, width))
    pad = max(2, round(font.size / 5))
    tall = round(font.size * 1.2) + 2 * pad
    taken: list[_Box] = []
    for text, colour, box in labels:
        shown = _cut(text, font, width - 2 * pad - 2)
        if not shown or tall > height // 2:
            continue
        wide = int(font.getlength(shown)) + 2 * pad + 2
        x0, y0, _, y1 = box or (0, height, width, height)
        x = min(max(x0, 0), width - wide)
        # Above the object, else below, else in it, else anywhere.
        tops = [y0 - tall - pad, y1 + pad, y0 + pad] if box else []
        tops += [*range(height - tall, -1, -tall)]
        fitting = [
            top
            for top in tops
            if 0 <= top <= height - tall and not _meets((x, top, x + wide, top + tall), taken)
        ]
        if not fitting:
            continue
        place = (x, fitting[0], x + wide, fitting[0] + tall)
        taken.append(place)
        _write(drawn_hwc, place, shown, font, colour, pad)


def with_scale(heat_hwc: Uint8, colours: Uint8) -> Uint8:
    """Append a bar of the colours (256, 3) of 0 to 1 to a heat map (H, W, 3): (H + bar, W, 3)."""
    height, width = heat_hwc.shape[:2]
    font = _font(_font_px(height, width))
    tall, pad = round(font.size * 1.3), max(2, round(font.size / 3))
    strip = Image.new("RGB", (width, 2 * tall + 2 * pad), "white")
    left, right = pad, max(pad + 1, width - pad)
    level = np.linspace(0, 255, right - left).round().astype(int)
    bar = np.broadcast_to(colours[level], (tall - pad // 2, right - left, 3))
    strip.paste(Image.fromarray(np.ascontiguousarray(bar)), (left, pad))
    pen = ImageDraw.Draw(strip)
    number = font.getlength("0.25")
    ticks: tuple[float, ...] = _TICKS if (right - left) / 4 > 3 * number else _TICKS[::2]
    ticks = ticks if (right - left) / 2 > 2 * number else ()
    for tick in ticks:
        x = left + tick * (right - left - 1)
        pen.line([x, pad + tall - pad // 2, x, 2 * pad + tall - pad // 2], fill="black")
        text = f"{tick:g}" if tick else f"0 {_SCALE_OF}"
        if tick == 0 and font.getlength(text) > (right - left) / (len(ticks) - 1) - number:
            text = "0"
        anchor = {0.0: "lt", 1.0: "rt"}.get(tick, "mt")
        pen.text((x, 2 * pad + tall - pad // 4), text, fill="black", font=font, anchor=anchor)
    return np.concatenate([heat_hwc, np.asarray(strip)])


def _write(
    drawn_hwc: Uint8, place: _Box, text: str, font: ImageFont.FreeTypeFont, ground: Rgb, pad: int
) -> None:
    x0, y0, x1, y1 = place
    light = float(np.array(ground, np.float32) @ _LUMA) > 140
    tag = Image.new("RGB", (x1 - x0, y1 - y0), ground)
    pen = ImageDraw.Draw(tag)
    # A frame that contrasts with the background: one of the two shows on any image.
    pen.rectangle([0, 0, x1 - x0 - 1, y1 - y0 - 1], outline="black" if light else "white")
    middle = (pad + 1, (y1 - y0) / 2)
    pen.text(middle, text, fill="black" if light else "white", font=font, anchor="lm")
    drawn_hwc[y0:y1, x0:x1] = np.asarray(tag)


def _meets(box: _Box, others: Sequence[_Box]) -> bool:
    return any(
        box[0] < x1 and x0 < box[2] and box[1] < y1 and y0 < box[3] for x0, y0, x1, y1 in others
    )


def _font_px(height: int, width: int) -> int:
    low, high = _FONT_PX
    return min(max(round(min(height, width) / _FONT_PART), low), high)


@lru_cache(maxsize=32)
def _font(px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # with a size it is not a bitmap
    return font


@lru_cache(maxsize=1024)
def _glyph(letter: str) -> bytes:
    return bytes(_font(16).getmask(letter))


def _has_letters(text: str) -> bool:
    missing = _glyph("\U0010ffff")
    return all(letter == " " or _glyph(letter) != missing for letter in text)


def _cut(text: str, font: ImageFont.FreeTypeFont, wide: int) -> str:
    """Shorten a text to a width in the middle: its end has the confidence."""
    if font.getlength(text) <= wide:
        return text
    name, end = text[:-14], text[-14:]
    while name and font.getlength(f"{name}...{end}") > wide:
        name = name[:-1]
    return f"{name}...{end}" if name else ""
