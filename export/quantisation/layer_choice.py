"""Which layers of a module are rounded to few bits, and why the others are not."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from rism.calibration.kept_layers import keep_reason
from rism.export.quantisation.block_rounding import BlockRounding, fitting_block

NO_BLOCK = "width"
"""Why a layer is kept whose rows no block divides."""


@dataclass(frozen=True)
class WeightChoice:
    """What is asked for: integers of `bits` bits in blocks of `block`, but not where `keep` fits.

    Attributes:
        bits: 4 or 8.
        block: numbers with one scale; rows that it does not divide get smaller ones.
        keep: patterns of names of layers, in which * stands for anything.
        moments: of what weights are multiplied with, see `BlockRounding`, by where the weights
            are: models of a few blocks number their layers otherwise.
    """

    bits: int
    block: int
    keep: tuple[str, ...] = ()
    moments: Mapping[Hashable, torch.Tensor] = field(default_factory=dict, compare=False)

    def of(
        self, module: nn.Module, rules: Mapping[str, Hashable]
    ) -> tuple[dict[str, BlockRounding], dict[str, str]]:
        """Choose among a module's linear layers, by their names in it.

        Args:
            module: without weights.
            rules: where the values of its parameters are.

        Returns:
            How the weights of some are rounded, and why those of the others are not.
        """
        rounded: dict[str, BlockRounding] = {}
        kept: dict[str, str] = {}
        for name, layer in linear_layers(module).items():
            block = fitting_block(layer.in_features, self.block)
            reason = keep_reason(name, self.keep)
            if reason is None and block is not None:
                moments = self.moments.get(rules[f"{name}.weight"])
                rounded[name] = BlockRounding(self.bits, block, moments)
            else:
                kept[name] = reason or NO_BLOCK
        return rounded, kept


def linear_layers(module: nn.Module) -> Mapping[str, nn.Linear]:
    """Return a module's linear layers by name."""
    return {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear)}
