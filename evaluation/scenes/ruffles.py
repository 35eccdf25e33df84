"""Ruffled outlines, with waves far shorter than the side of a token."""

import numpy as np

_WAVE_PX = (9.0, 15.0)
_DEPTH_PX = (3.0, 5.5)
_WAVES = 3


def ruffle(sprite: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift every pixel by waves of 9 to 15 pixels, which move the outline by up to some 5.

    Sprite and result are (h, w, 4) uint8 RGBA with straight alpha; the result is read-only.
    """
    height, width = sprite.shape[:2]
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    shift_x, shift_y = np.zeros((2, height, width))
    for _ in range(_WAVES):
        angle, wave = rng.uniform(0, 2 * np.pi), rng.uniform(*_WAVE_PX)
        phase = 2 * np.pi / wave * (np.cos(angle) * x + np.sin(angle) * y)
        depth = rng.uniform(*_DEPTH_PX) / np.sqrt(_WAVES)
        shift_x += depth * np.sin(phase + rng.uniform(0, 2 * np.pi))
        shift_y += depth * np.sin(phase + rng.uniform(0, 2 * np.pi))
    ruffled = _sampled(sprite, x + shift_x, y + shift_y)
    ruffled.flags.writeable = False
    return ruffled


def _sampled(sprite: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples of straight RGBA; clear outside of it."""
    alpha = sprite[..., 3:].astype(np.float32)
    # Premultiplied colours, with a border of transparent pixels.
    padded = np.pad(np.concatenate([sprite[..., :3] * alpha, alpha], -1), ((1, 1), (1, 1), (0, 0)))
    x, y = np.clip(x + 1, 0, padded.shape[1] - 1.001), np.clip(y + 1, 0, padded.shape[0] - 1.001)
    left, top = x.astype(int), y.astype(int)
    across, down = (x - left)[..., None], (y - top)[..., None]
    upper = padded[top, left] * (1 - across) + padded[top, left + 1] * across
    lower = padded[top + 1, left] * (1 - across) + padded[top + 1, left + 1] * across
    mixed = upper * (1 - down) + lower * down
    colour = mixed[..., :3] / np.maximum(mixed[..., 3:], 1e-6)
    out = np.concatenate([colour, mixed[..., 3:]], axis=-1)
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)
