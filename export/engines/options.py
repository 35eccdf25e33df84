"""What a build can be asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rism.runtime.engines.shape_profiles import BATCH
from rism.runtime.errors import InputError, one_line
from rism.runtime.names import ENGINE_PRECISIONS

__all__ = ["WEIGHTS", "BuildOptions"]

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}", re.ASCII)
WEIGHTS = ("plan", "stripped", "bound")


@dataclass(frozen=True)
class BuildOptions:
    """What to build, and how.

    Attributes:
        target: "tensorrt-rtx" or "tensorrt".
        precision: None for the bundle's own; "fp8" needs scales.
        gpus: compute capabilities, such as ("8.6", "12.0"); none for all that can be served.
        shapes: "MIN/OPT/MAX" with each WIDTHxHEIGHT in pixels of what the model sees, one such
            size for engines of that size alone, "static" for the bundle's fixed sizes, None for
            what the bundle's geometry can ask for.
        batch: fewest, usual and most expressions of a run.
        captures: capture modes to build; none for all that the bundle has.
        weights: "plan" (inside the engine), "stripped" (the engine is refitted from the bundle's
            own weights), or "bound" (weights are inputs of the engine, which the runtime binds
            to the bundle's own).
        scales: FP8 scales; None for those in the bundle.
        name: of the variant; None for one that says target, precision and weights.
        unchecked: keep an engine whose layer listing is not what it should be.
        force: build anew what the bundle has, built as it is asked for.
        timeout_s: of one graph's build.
    """

    target: str = "tensorrt-rtx"
    precision: str | None = None
    gpus: Sequence[str] = ()
    shapes: str | None = None
    batch: tuple[int, int, int] = BATCH
    captures: Sequence[str] = ()
    weights: str = "plan"
    scales: Path | None = None
    name: str | None = None
    unchecked: bool = False
    force: bool = False
    timeout_s: float = 3600.0

    def check(self) -> None:
        """Refuse what is not known.

        Raises:
            InputError: an option is out of range.
        """
        if self.precision is not None and self.precision not in ENGINE_PRECISIONS:
            raise InputError(
                f"precision is '{one_line(self.precision)}', expected one of "
                f"{', '.join(ENGINE_PRECISIONS)}"
            )
        if self.weights not in WEIGHTS:
            raise InputError(
                f"weights are '{one_line(self.weights)}', expected {', '.join(WEIGHTS)}"
            )
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2] <= 64:
            raise InputError(
                f"--batch is {'/'.join(map(str, self.batch))}, expected MIN/OPT/MAX from 1 to 64, "
                "such as 1/1/8"
            )
        if self.name is not None and _NAME.fullmatch(self.name) is None:
            raise InputError(
                f"--name is '{one_line(self.name, limit=80)}', expected up to 64 of a-z, 0-9, "
                ". + and -, such as tensorrt-rtx-fp16"
            )
        if self.timeout_s <= 0:
            raise InputError(f"--timeout is {self.timeout_s:g}, expected seconds above 0")
