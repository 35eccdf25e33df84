"""Muted backgrounds: low saturation and middle brightness, so that every object stays visible."""

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image

Painter = Callable[[np.random.Generator, int, int], np.ndarray]

_MAX_SATURATION = 0.22
_VALUE_RANGE = (0.36, 0.72)
_GRAIN = 3.0  # largest strength of the fine random grain, in grey levels


def muted_colour(
    rng: np.random.Generator, *, value: tuple[float, float] = _VALUE_RANGE
) -> np.ndarray:
    """Draw a greyish colour: (3,) float32 in 0..255."""
    hue, saturation, level = rng.random(), rng.uniform(0.02, _MAX_SATURATION), rng.uniform(*value)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, level), np.float32) * 255.0


def _near(rng: np.random.Generator, colour: np.ndarray, *, spread: float) -> np.ndarray:
    """Vary a colour a little: (3,) float32 to (3,) float32."""
    shift = rng.uniform(-spread, spread) + rng.uniform(-4.0, 4.0, 3)
    return np.clip(colour + shift, 70.0, 195.0).astype(np.float32)


def _mix(weight: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Blend two colours by a weight map: (h, w) float32 in 0..1 to (h, w, 3) float32."""
    mixed: np.ndarray = first + weight[..., None] * (second - first)
    return mixed


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A linear ramp at a random angle: (h, w) float32 from 0 to 1."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32) * np.float32(np.cos(angle))
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32) * np.float32(np.sin(angle))
    ramp: np.ndarray = y[:, None] + x[None, :]
    low, high = float(ramp.min()), float(ramp.max())
    ramp -= low
    ramp /= max(high - low, 1e-6)
    return ramp


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise: (h, w) float32 in 0..1, about ``cells`` bumps along each side."""
    grid = Image.fromarray(rng.random((cells + 1, cells + 1), np.float32))
    noise = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
    clipped: np.ndarray = np.clip(noise, 0.0, 1.0)
    return clipped


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return _mix(_ramp(rng, height, width), muted_colour(rng), muted_colour(rng))


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    base = muted_colour(rng)
    coarse = _smooth_noise(rng, height, width, int(rng.integers(2, 6)))
    fine = _smooth_noise(rng, height, width, int(rng.integers(8, 24)))
    first, second = _near(rng, base, spread=30.0), _near(rng, base, spread=30.0)
    return _mix(0.7 * coarse + 0.3 * fine, first, second)


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    base = muted_colour(rng)
    angle, bands = rng.uniform(0.0, np.pi), rng.uniform(3.0, 9.0)
    side = max(height, width)
    x = np.arange(width, dtype=np.float32) * np.float32(np.cos(angle) * bands / side)
    y = np.arange(height, dtype=np.float32) * np.float32(np.sin(angle) * bands / side)
    wave = np.sin(2.0 * np.pi * (y[:, None] + x[None, :]) + np.float32(rng.uniform(0.0, 6.0)))
    weight = np.clip(0.5 + 2.0 * wave, 0.0, 1.0)
    return _mix(weight, base, _near(rng, base, spread=18.0))


def _checker(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    base = muted_colour(rng)
    cell = max(4, int(min(height, width) / rng.uniform(3.0, 8.0)))
    offset_x, offset_y = (int(v) for v in rng.integers(0, cell, 2))
    rows = (np.arange(height) + offset_y) // cell
    columns = (np.arange(width) + offset_x) // cell
    weight = ((rows[:, None] + columns[None, :]) % 2).astype(np.float32)
    return _mix(weight, base, _near(rng, base, spread=18.0))


def _ground_and_sky(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    horizon = rng.uniform(0.35, 0.7) * height
    rows = np.arange(height, dtype=np.float32)
    sky = _mix(
        (rows / height)[:, None],
        muted_colour(rng, value=(0.5, 0.72)),
        muted_colour(rng, value=(0.6, 0.74)),
    )
    ground = _mix(
        (rows / height)[:, None],
        muted_colour(rng, value=(0.36, 0.55)),
        muted_colour(rng, value=(0.36, 0.6)),
    )
    swell = rng.uniform(0.0, 0.05) * height
    phase, waves = rng.uniform(0.0, 6.0), rng.uniform(0.5, 1.5)
    x = np.linspace(0.0, 2.0 * np.pi * waves, width, dtype=np.float32)
    edge = horizon + swell * np.sin(x + phase)
    weight = np.clip(rows[:, None] - edge[None, :] + 0.5, 0.0, 1.0).astype(np.float32)
    image: np.ndarray = sky + weight[..., None] * (ground - sky)
    return image


_PAINTERS: tuple[Painter, ...] = (_gradient, _noise, _stripes, _checker, _ground_and_sky)


def make_background(rng: np.random.Generator, *, size_wh: tuple[int, int]) -> np.ndarray:
    """Paint a random muted background, (h, w, 3) uint8, of a size in pixels."""
    width, height = size_wh
    painter = _PAINTERS[int(rng.integers(len(_PAINTERS)))]
    image = painter(rng, height, width)
    if rng.random() < 0.5:
        strength = np.float32(rng.uniform(0.5, 1.0) * _GRAIN)
        image = image + strength * (rng.random((height, width, 1), np.float32) * 2.0 - 1.0)
    return np.clip(image + 0.5, 0.0, 255.0).astype(np.uint8)
