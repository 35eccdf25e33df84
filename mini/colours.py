"""Colours: their names, which of them pixels have, and how to turn them."""

import numpy as np

COLOUR_NAMES = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey",
)  # fmt: skip
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def colour_shares(pixels: np.ndarray) -> np.ndarray:
    """Share of each of `COLOUR_NAMES` in premultiplied pixels (h, w, 4) uint8: (11,) float32."""
    step = max(1, pixels.shape[0] // 24)
    flat = pixels[::step, ::step].reshape(-1, 4).astype(np.float32)
    flat = flat[flat[:, 3] > 200]
    if not len(flat):
        return np.zeros(len(COLOUR_NAMES), np.float32)
    rgb = flat[:, :3] / flat[:, 3:]
    top, low = rgb.max(1), rgb.min(1)
    chroma = top - low
    c = np.maximum(chroma, 1e-6)
    r, g, b = rgb.T
    hue = (
        np.where(top == r, (g - b) / c % 6, np.where(top == g, (b - r) / c + 2, (r - g) / c + 4))
        * 60
    )
    light = rgb @ _LUMA
    # Upper limits of hue in degrees: red, orange, yellow, green, blue, purple, pink, red.
    name = np.array([0, 1, 2, 3, 4, 5, 6, 0])[
        np.searchsorted([14, 40, 68, 165, 255, 290, 338], hue)
    ]
    pale_red = (name == 0) & (top > 0.85) & (low > 0.5)
    name = np.where(pale_red, 6, name)
    brown = ((name <= 1) & (light < 0.5) & (chroma < 0.55) & (hue > 8) & (hue < 45)) | (
        (name == 2) & (light < 0.4)
    )
    name = np.where(brown, 7, name)
    dull = chroma < np.maximum(0.12, 0.22 * top)
    name = np.where(dull, np.where(light > 0.78, 9, np.where(light < 0.24, 8, 10)), name)
    name = np.where(top < 0.2, 8, name)
    return np.bincount(name, minlength=len(COLOUR_NAMES)).astype(np.float32) / len(name)


def hue_matrix(angle: float, saturation: float, gain: float) -> np.ndarray:
    """A (3, 3) matrix that turns the hue, and changes saturation and light."""
    u, w = saturation * np.cos(angle), saturation * np.sin(angle)
    grey = np.tile(_LUMA, (3, 1))
    turn = np.array([[0.168, 0.330, -0.497], [-0.328, 0.035, 0.292], [1.250, -1.050, -0.203]])
    matrix: np.ndarray = gain * (grey + u * (np.eye(3) - grey) + w * turn)
    return matrix.astype(np.float32)
