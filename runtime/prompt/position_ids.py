"""Positions of the tokens of a prompt with an image (docs/bundle.md, steps 4 and 5)."""

import numpy as np
import numpy.typing as npt

from rism.runtime.arrays import BoolArray, Float32, Int64
from rism.runtime.errors import BundleError


def position_ids(
    input_ids: Int64,
    seen_mask: Int64,
    *,
    image_token_id: int,
    grid_hw: tuple[int, int],
    merge: int,
    unseen_position: int = 0,
) -> Int64:
    """Return positions on the text encoder's three rotary axes: time, height and width.

    The position of a text token is that of the token before it plus one on every axis. The image
    tokens have one time, and height and width by row and column; the text after them goes on from
    the longer side.

    Args:
        input_ids: (B, S) int64.
        seen_mask: (B, S) int64, zero on tokens that do not count.
        image_token_id: the image token.
        grid_hw: rows and columns of patches.
        merge: patches along one side of a merged patch, which is one token.
        unseen_position: position of tokens that do not count, on every axis.

    Returns:
        (3, B, S) int64.

    Raises:
        BundleError: the image tokens of a prompt are not as many as the grid has.
    """
    rows, columns = grid_hw[0] // merge, grid_hw[1] // merge
    ids = np.full((3, *input_ids.shape), unseen_position, np.int64)
    is_image = (input_ids == image_token_id) & (seen_mask != 0)
    for at, (mask, in_image) in enumerate(zip(seen_mask != 0, is_image, strict=True)):
        places = np.flatnonzero(in_image)
        if not len(places) or len(places) != rows * columns:
            raise BundleError(
                f"the prompt has {len(places)} of the image's tokens, expected {rows} x "
                f"{columns} of 'prompt.vision': export the bundle again"
            )
        count = np.cumsum(mask) - 1
        first = count[places[0]]
        count[places[-1] + 1 :] += max(rows, columns) - rows * columns
        ids[:, at, mask] = count[mask]
        ids[0, at, places] = first
        ids[1:, at, places] = first + np.indices((rows, columns)).reshape(2, -1)
    return ids


def prompt_positions(
    time_ids: Int64,
    image_mask: BoolArray,
    *,
    view_wh: tuple[int, int],
    model_wh: tuple[int, int],
    grid_hw: tuple[int, int],
    offset_px: float,
    token_px: int,
) -> Float32:
    """Return a prompt's positions on the transformer's axes: time, row and column.

    The last token has time -1, those before it less; text has row and column 0. An image token
    has those of its centre on the grid of the clean tokens: corners of the view are mapped to
    corners of the image at the model's size, pixel centre to pixel centre.

    Args:
        time_ids: (N_p,) int64, the first axis of `position_ids`, without dropped tokens.
        image_mask: (N_p,) bool, true on the image tokens.
        view_wh: width and height of the view, pixels.
        model_wh: of the image at the model's size, pixels.
        grid_hw: rows and columns of the image tokens.
        offset_px: centre of the first clean token, pixels.
        token_px: side of a clean token, pixels.

    Returns:
        (N_p, 3) float32.

    Raises:
        BundleError: a part of the image was dropped.
    """
    rows, columns = grid_hw
    if image_mask.sum() != rows * columns:
        raise BundleError(
            f"the transformer gets {int(image_mask.sum())} of the image's tokens, expected "
            f"{rows} x {columns} for 'prompt.positions' ('prompt.drop' is too large): "
            "export the bundle again"
        )
    placed = np.zeros((len(time_ids), 3), np.float32)
    placed[:, 0] = time_ids - (time_ids.max(initial=0) + 1)
    centres = [
        _centres(cells, view, model, offset_px, token_px)
        for cells, view, model in zip((rows, columns), view_wh[::-1], model_wh[::-1], strict=True)
    ]
    grid = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1)
    placed[image_mask, 1:] = grid.reshape(-1, 2)
    return placed


def _centres(
    cells: int, view: int, model: int, offset_px: float, token_px: int
) -> npt.NDArray[np.float64]:
    """Return the centres of the view's cells along one side, in clean tokens."""
    side = view / cells
    pixel = np.arange(cells) * side + (side - 1) / 2
    scale = (model - 1) / (view - 1) if view > 1 else 0.0
    return np.asarray((pixel * scale - offset_px) / token_px, np.float64)
