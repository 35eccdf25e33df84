"""Sheets of sprites: many things in little time, for learning what each kind looks like.

A sheet is an image cut into equal cells with a sprite each, turned, scaled and coloured at random.
Scenes show how things really lie, but few of them, and most of a scene is background.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from mini.architecture import CONFIG
from mini.assets import SIDE
from mini.batches import Batch, BatchStream, Movable, Stream, to_tensor
from mini.colours import hue_matrix
from mini.concepts import IGNORE, kind_index
from mini.scenes import finish

SHEET_PX = 256
SHEETS = 16
CELLS = (48, 48, 64, 64, 64, 96, 128)  # pixels of a cell's side, each as likely
_EMPTY = 0.05  # share of cells
_SCENES = 0.25  # share of batches
_COVER = (0.1, 0.4)  # of a token: below it shows background, above it the thing


@dataclass
class Sheet(Movable):
    """Sheets (S, 3, H, W) float32 in [-1, 1], and the kind that each token shows (S, N_v)."""

    source: torch.Tensor
    kinds: torch.Tensor


class SheetStream(Stream[Sheet | Batch]):
    """Endless sheets of sprites, and among them batches of scenes, which have all labels."""

    def __init__(self, scenes: BatchStream) -> None:
        super().__init__(scenes.tokenizer, scenes.folder, split=scenes.split)
        self.scenes = scenes

    def batch(self, step: int) -> Sheet | Batch:
        """The sheets or scenes of one step."""
        rng = np.random.default_rng([step, 23])
        if rng.random() < _SCENES:
            return self.scenes.batch(step)
        cell = int(rng.choice(CELLS))
        per_side = SHEET_PX // cell
        count = SHEETS * per_side**2
        maker = self.maker
        rows, kinds = maker.draw_sprites(rng, count, self.split)
        sprites, covers = _cells(rng, maker.pixels(rows), cell)
        seen = rng.random(count) >= _EMPTY
        covers *= torch.from_numpy(seen).view(-1, 1, 1, 1)
        sprites *= torch.from_numpy(seen).view(-1, 1, 1, 1)
        over, alpha = (_laid_out(x, per_side) for x in (sprites, covers))
        grounds = [maker.ground(rng, (SHEET_PX, SHEET_PX), self.split)[0] for _ in range(SHEETS)]
        ground = torch.from_numpy(np.stack(grounds)).permute(0, 3, 1, 2).float() / 255
        drawn = (ground * (1 - alpha) + over).clamp(0, 1)
        pixels = (drawn.permute(0, 2, 3, 1) * 255 + 0.5).to(torch.uint8).numpy()
        images = [finish(rng)(image) for image in pixels]
        places = torch.tensor([kind_index()[kind] for kind in kinds]).view(-1, 1, 1, 1)
        of_cell = _laid_out(places.expand(-1, 1, cell, cell).float(), per_side)
        cover = F.avg_pool2d(alpha, CONFIG.token_px).flatten(1)
        kind = F.max_pool2d(of_cell, CONFIG.token_px).flatten(1).long()
        kind = torch.where(cover >= _COVER[1], kind, torch.where(cover > _COVER[0], IGNORE, 0))
        return Sheet(to_tensor(images), kind)


def _cells(
    rng: np.random.Generator, sprites: np.ndarray, cell: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Premultiplied colours (n, 3, cell, cell) in [0, 1] and opacity (n, 1, cell, cell)."""
    count = len(sprites)
    pixels = torch.from_numpy(sprites).permute(0, 3, 1, 2).float() / 255
    if cell <= SIDE // 2:
        pixels = F.avg_pool2d(pixels, 2)
    angle = np.where(
        rng.random(count) < 0.85, rng.normal(0, 0.2, count), rng.uniform(-np.pi, np.pi, count)
    )
    scale = rng.uniform(0.65, 1.0, count)
    flip = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    shift = (1 - scale) * rng.uniform(-1, 1, (2, count))
    wide = np.exp(rng.normal(0, 0.12, count))
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    theta = np.stack(
        [flip * cosine / wide, flip * sine / wide, -sine * wide, cosine * wide], axis=-1
    ).reshape(count, 2, 2)
    offset = -theta @ shift.T[..., None]
    grid = F.affine_grid(
        torch.from_numpy(np.concatenate([theta, offset], axis=2)).float(),
        [count, 4, cell, cell],
        align_corners=False,
    )
    placed = F.grid_sample(pixels, grid, align_corners=False)
    turn = np.where(
        rng.random(count) < 0.35, rng.uniform(0.5, 5.8, count), rng.normal(0, 0.1, count)
    )
    vivid = np.where(rng.random(count) < 0.3, rng.uniform(0, 0.75, count), 1.0)
    vivid *= rng.uniform(0.75, 1.25, count)
    change = zip(turn, vivid, rng.uniform(0.75, 1.15, count), strict=True)
    matrices = torch.from_numpy(np.stack([hue_matrix(*each) for each in change]))
    colour = torch.einsum("nij,njhw->nihw", matrices, placed[:, :3])
    alpha = placed[:, 3:]
    return _restyled(rng, torch.minimum(colour.clamp_min(0), alpha), alpha)


def _restyled(
    rng: np.random.Generator, colour: torch.Tensor, alpha: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells in a hand that no set has: darker or paler, in few tones, with a dark contour."""
    count = len(colour)

    def some(share: float, values: np.ndarray) -> torch.Tensor:
        drawn = np.where(rng.random(count) < share, values, np.nan)
        return torch.from_numpy(drawn).float().view(-1, 1, 1, 1)

    gamma = some(0.5, np.exp(rng.normal(0, 0.35, count))).nan_to_num(1.0)
    tone = (colour / alpha.clamp_min(1e-3)).clamp(0, 1) ** gamma
    levels = some(0.2, rng.integers(2, 5, count).astype(float))
    tone = torch.where(levels.isnan(), tone, (tone * levels).round() / levels)
    colour = tone * alpha
    ink = some(0.25, rng.uniform(0, 0.25, count))
    around = F.max_pool2d(alpha, 3, stride=1, padding=1)
    contour = torch.where(ink.isnan(), 0.0, around - alpha)
    return colour + contour * ink.nan_to_num(0.0), alpha + contour


def _laid_out(cells: torch.Tensor, per_side: int) -> torch.Tensor:
    """Cells (S * n * n, c, cell, cell) side by side on (S, c, SHEET_PX, SHEET_PX), the rest 0."""
    count, channels, cell, _ = cells.shape
    grid = cells.view(count // per_side**2, per_side, per_side, channels, cell, cell)
    side = per_side * cell
    whole = grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, side, side)
    return F.pad(whole, (0, SHEET_PX - side, 0, SHEET_PX - side))
