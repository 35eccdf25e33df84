"""The options of an export, and its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rism.export.names import (
    FEATURE_SITES,
    GRAPH_PRECISIONS,
    MAX_NOISY_GRID,
    PARITY_MODES,
    PRESET_CHOICES,
    PRESETS,
    Preset,
)
from rism.export.parity.gate import Checks
from rism.export.plan.checkpoint_plan import ExportPlan
from rism.export.quantisation.block_rounding import BITS, BLOCKS, DEFAULT_BLOCK
from rism.export.quantisation.layer_report import RoundedLayer
from rism.runtime.errors import InputError, one_line
from rism.runtime.names import CAPTURES


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export.

    Attributes:
        captures: capture modes to include, the default one first.
        feature_site: "mmsa", "adaln" or "block" (table 3 of the paper).
        token_attention: add attention per prompt token to every transformer graph.
        preset: "paper" reads all; "fast" the blocks up to the features', with noisy tokens in
            every second row and column.
        capture_blocks: blocks that attention is read from, see `choose_blocks`; the graphs end
            with the last block that is read. None for the preset's.
        noisy_grid: k, so that only every k-th row and column of the image has noisy tokens; None
            for the preset's.
        precision: "fp32", "bf16", "fp16", or None for the model's own; "int8" or "int4" rounds
            weights of the transformer's blocks to integers of so many bits.
        text_precision: likewise of the text encoder, and of the vision encoder where there is
            one; None for that of the transformer, with weights that are all floats.
        block_size: numbers of a row of a weight that share a scale, for "int8" and "int4".
        activations: a file of `rism calibrate --activations`, by which the rounding of the
            transformer's weights is weighed; None for weights that count the same.
        keep: patterns of layers that "int8" and "int4" leave in 16 bits, besides those that they
            always do, such as `*.to_out.0`.
        size_level: resize every image to about this many pixels squared, as the paper does;
            None for what the model's pipeline does.
        sizes: widths and heights of graphs of fixed size; empty for one graph of any size.
        template: the instruction, with {expression} in it; None for "remove {expression}".
        vision_id: whether "Picture 1: " comes before the image in the prompt, for families that
            have it (docs/step1x.md); None for what the model's release does.
        parity: "full" compares whole graphs with PyTorch, "blocks" one block of each kind on
            the bundle's weights, "auto" chooses by the free memory.
        revision: branch, tag or commit on the hub.
        offline: use only files that are already on this machine.
    """

    captures: Sequence[str] = ("vectors",)
    feature_site: str = "mmsa"
    token_attention: bool = False
    preset: Preset = "paper"
    capture_blocks: str | None = None
    noisy_grid: int | None = None
    precision: str | None = None
    text_precision: str | None = None
    block_size: int = DEFAULT_BLOCK
    activations: Path | None = None
    keep: Sequence[str] = ()
    size_level: int | None = None
    sizes: Sequence[tuple[int, int]] = field(default=())
    template: str | None = None
    vision_id: bool | None = None
    parity: str = "auto"
    revision: str | None = None
    offline: bool = False

    @property
    def reading(self) -> tuple[str, int]:
        """The choice of blocks, and that of noisy tokens."""
        blocks, noisy_grid = PRESET_CHOICES[self.preset]
        return self.capture_blocks or blocks, self.noisy_grid or noisy_grid

    def check(self) -> None:
        """Refuse unknown names and values out of range.

        Raises:
            InputError: An option is out of range.
        """
        for name, given, known in (
            ("capture", tuple(self.captures), CAPTURES),
            ("feature site", (self.feature_site,), FEATURE_SITES),
            ("preset", (self.preset,), PRESETS),
            ("precision", (self.precision or "fp32",), GRAPH_PRECISIONS),
            ("text precision", (self.text_precision or "fp32",), GRAPH_PRECISIONS),
            ("parity", (self.parity,), PARITY_MODES),
        ):
            unknown = [one_line(value) for value in given if value not in known]
            if unknown or not given:
                raise InputError(
                    f"{name} {', '.join(unknown) or 'nothing'} is not known, expected some of "
                    f"{', '.join(known)}"
                )
        if self.noisy_grid is not None and not 1 <= self.noisy_grid <= MAX_NOISY_GRID:
            raise InputError(
                f"noisy grid is {self.noisy_grid}, expected 1 (all noisy tokens) to "
                f"{MAX_NOISY_GRID}"
            )
        if self.block_size not in BLOCKS:
            raise InputError(
                f"block size is {self.block_size}, expected one of {', '.join(map(str, BLOCKS))}"
            )
        if self.activations is not None and self.precision not in BITS:
            raise InputError(
                "activations were given and no weights of the transformer are rounded: add "
                "--precision int8 or int4"
            )
        if self.keep and not {self.precision, self.text_precision} & set(BITS):
            raise InputError(
                "layers to keep were given and no weights are rounded: add --precision or "
                "--text-precision, int8 or int4"
            )
        if self.size_level is not None and not 8 <= self.size_level <= 8192:
            raise InputError(
                f"size level is {self.size_level}, expected pixels from 8 to 8192, such as 512"
            )
        if self.size_level is not None and self.sizes:
            raise InputError("a size level and fixed sizes exclude each other: give one of them")
        if self.template is not None and self.template.count("{expression}") != 1:
            raise InputError(
                f"template is '{one_line(self.template)}', expected text with {{expression}} in "
                "it once"
            )


@dataclass(frozen=True)
class ExportReport:
    """The bundle that was written, and how closely it agrees with the PyTorch model.

    Attributes:
        path: the bundle.
        size_bytes: of all its files together.
        parity: the largest error of each output of each graph.
        plan: the plan of the export.
        rounded: layers of parts with weights in few bits, and their errors.
    """

    path: Path
    size_bytes: int
    parity: Checks
    plan: ExportPlan
    rounded: Sequence[RoundedLayer] = ()

    def parity_table(self) -> str:
        """Return one line for each graph output: its error and the limit."""
        rows = [
            f"{graph:<24} {name:<26} {check.error:9.2e}  (limit {check.limit:.0e})"
            for graph, checks in self.parity.items()
            for name, check in checks.items()
        ]
        return "\n".join(rows)
