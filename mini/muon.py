"""Muon (Jordan et al., 2024), for filters of convolutions as well as for matrices."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, which converges in 5 steps


def orthogonal(gradient: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix with orthogonal rows or columns, in bfloat16 inside."""
    a, b, c = _COEFFICIENTS
    x = gradient.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    found: torch.Tensor = x.mT if tall else x
    return found.float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is made orthogonal; filters count as matrices."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": 0.95, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        gradient = cast(torch.Tensor, parameter.grad)
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: torch.Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(momentum, group["momentum"])
        update = orthogonal(ahead.flatten(1))
        # The largest change of an output of unit size, whatever the shape.
        size = group["lr"] * max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["decay"])
        parameter.sub_(size * update.view_as(parameter))


def optimizers(
    named: Iterable[tuple[str, nn.Parameter]], muon: float, adam: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and filters inside networks, AdamW for everything else; their rates."""
    matrices, rest = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in named:
        inside = any(part in name for part in ("block", "conv", "model.layers."))
        (matrices if inside and parameter.ndim >= 2 else rest).append(parameter)
    return [
        Muon(matrices, lr=muon, decay=0.02),
        torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.98), weight_decay=0.0),
    ]
