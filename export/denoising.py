"""Whole transformers that denoise: what the ablations run instead of the single step.

The exporter's single step ends where the last captured quantity is known. Later denoising steps
need what the model predicts, so here the last block runs as the others do, and the final norm and
projection follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rism.export.checkpoint.meta_modules import Part, put_tensor
from rism.export.precision import Precision

SIGMAS_KEPT = 64
"""Steps whose constants are kept: a schedule may depend on the size, and images have many."""


@dataclass(frozen=True)
class WholeModel:
    """A transformer with its prediction, and what of it depends on the step alone.

    Attributes:
        part: the module and where its weights are. The module leaves its prediction in
            `Capture.velocity`.
        constants: buffers of the module at a sigma, by name, float32.
        stream: the type they have in the module, or None for float32.
    """

    part: Part
    constants: Callable[[float], Mapping[str, torch.Tensor]]
    stream: torch.dtype | None = None

    def at(self, sigma: float) -> None:
        """Set the module's step."""
        module = self.part.module
        for name, value in self.constants(sigma).items():
            put_tensor(module, name, value.to(module.get_buffer(name).device, self.stream))


@dataclass(frozen=True)
class Denoiser:
    """How a family denoises.

    Attributes:
        whole: builds the transformer with its prediction.
        steps: of a run, as published.
        shift: mu of the scheduler's shift, from the number of the image's tokens, of the steps,
            and the scheduler's configuration.
    """

    whole: Callable[[Precision], WholeModel]
    steps: int
    shift: Callable[[int, int, Mapping[str, Any]], float]
