"""A transformer's large products in FP8, as PyTorch runs them: for the time, not for a bundle.

Weights are rounded once, with a scale for each output channel; inputs as they come, with a scale
for each token. `torch._scaled_mm` is cuBLASLt's or CUTLASS's product on a GPU (compute capability
8.9 and later), and a slow one on a CPU, which shows the arithmetic.
"""

from __future__ import annotations

import torch
from torch import nn

_FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FP8).max
_BLOCKS = "transformer_blocks."
# Both sizes of a weight, for the products that the libraries have.
_MULTIPLE = 16


class Fp8Linear(nn.Module):
    """A linear layer; what comes out has the type of what goes in.

    Args:
        weight: (out, in).
        bias: (out,), or None.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        narrow, scale = _rounded(weight)
        self.register_buffer("weight", narrow)
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        narrow, scale = _rounded(x.flatten(0, -2))
        out = torch._scaled_mm(
            narrow, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16
        )
        out = out.to(x.dtype).reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def _rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, C) to the same in FP8 and (R, 1) float32, what it was divided by."""
    largest = rows.abs().amax(-1, keepdim=True).float()
    scale = largest.clamp(min=1e-12) / _LARGEST
    return (rows.float() / scale).to(_FP8), scale


def use_fp8(step: nn.Module, *, leave: tuple[str, ...] = ()) -> int:
    """Replace the products of a single step's blocks, in place.

    Args:
        step: a `SingleStepDiT` with weights.
        leave: ends of the names of layers that stay as they are (modulation).

    Returns:
        How many layers were replaced.
    """
    found = 0
    for name, module in list(step.named_modules()):
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or _BLOCKS not in name:
            continue
        if name.endswith(leave) or any(size % _MULTIPLE for size in weight.shape):
            continue
        step.set_submodule(name, Fp8Linear(weight.detach(), getattr(module, "bias", None)))
        found += 1
    return found
