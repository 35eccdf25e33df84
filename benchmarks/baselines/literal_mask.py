"""Baseline: post-processing as the paper writes it, equations 4 to 6, in PyTorch.

Source: arXiv 2605.13122, sections on the region and on the mask. The features are brought to the
image's size, D x H x W, and every pixel is compared with both prototypes. Nothing is left out
and nothing is put in another order: this is the form that the paper's times are of.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

Float32 = npt.NDArray[np.float32]


def _minmax(values: torch.Tensor) -> torch.Tensor:
    return (values - values.min()) / (values.max() - values.min())


@torch.no_grad()
def literal_mask(
    propagated: Float32 | torch.Tensor,
    features: Float32 | torch.Tensor,
    *,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    tau: float,
) -> npt.NDArray[np.bool_]:
    """Make a mask of T_l a_l, (L, N) float32, and features, (N, D) float32.

    Args:
        propagated: of every block.
        features: of one block, on the device where all is computed.
        grid_hw: rows and columns of the N tokens.
        size_hw: of the image, which the model saw as a whole.
        tau: region threshold.

    Returns:
        (H, W).
    """
    vectors, rows = torch.as_tensor(propagated), torch.as_tensor(features)
    region = _minmax(vectors.sum(0)) > tau
    unit = F.normalize(rows, dim=-1)
    prototypes = torch.stack([unit[region].mean(0), unit[~region].mean(0)])
    maps = unit.T.reshape(1, -1, *grid_hw)
    # Half-pixel centres and clamped edges, as docs/bundle.md, step 7, has them.
    pixels = F.interpolate(maps, size=size_hw, mode="bilinear", align_corners=False)
    similar = prototypes @ pixels[0].flatten(1)
    mask: npt.NDArray[np.bool_] = (similar.argmax(0) == 0).reshape(size_hw).cpu().numpy()
    return mask
