"""Which layers of a module are rounded to few bits, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    """

    bits: int
    block: int
    keep: tuple[str, ...] = ()

    def of(self, module: nn.Module) -> tuple[dict[str, BlockRounding], dict[str, str]]:
        """Choose among a module's linear layers, by their names in it.

        Returns:
            How the weights of some are rounded, and why those of the others are not.
        """
        rounded: dict[str, BlockRounding] = {}
        kept: dict[str, str] = {}
        for name, layer in linear_layers(module).items():
            block = fitting_block(layer.in_features, self.block)
            reason = keep_reason(name, self.keep)
            if reason is None and block is not None:
                rounded[name] = BlockRounding(self.bits, block)
            else:
                kept[name] = reason or NO_BLOCK
        return rounded, kept


def linear_layers(module: nn.Module) -> Mapping[str, nn.Linear]:
    """Return a module's linear layers by name."""
    return {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear)}
