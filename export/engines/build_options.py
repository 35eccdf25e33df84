"""The options of a build."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rism.runtime.engines.shape_profiles import BATCH
from rism.runtime.errors import InputError, one_line
from rism.runtime.names import ENGINE_PRECISIONS

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}", re.ASCII)
# Where the weights may be other than in the plan for good, and the flags that say so.
WEIGHT_FLAGS = {"stripped": "strip_weights", "bound": "bind_weights", "streamed": "stream_weights"}
WEIGHTS = ("plan", *WEIGHT_FLAGS)


@dataclass(frozen=True)
class BuildOptions:
    """What to build, and how.

    Attributes:
        target: "tensorrt-rtx" or "tensorrt".
        precision: None for the bundle's own; "fp8" and "nvfp4" need scales.
        gpus: compute capabilities, such as ("8.6", "12.0"); none for all that can be served.
        shapes: sizes of image after the model's resize, as "MIN/OPT/MAX" with each WIDTHxHEIGHT
            in pixels, or one WIDTHxHEIGHT; "static" for a bundle of fixed sizes; None for every
            size that the bundle's geometry allows.
        batch: fewest, usual and most expressions of a run.
        captures: capture modes to build; none for all that the bundle has.
        weights: "plan" (inside the engine), "stripped" (left out, and refitted from the bundle's
            own weights), "bound" (inputs of the engine, which the runtime binds to the bundle's
            own weights), or "streamed" (inside the engine, which reads them from host memory where
            its budget of the GPU's is too small).
        scales: file of scales; None for those in the bundle.
        name: of the variant; None for one made of target, precision and weights.
        unchecked: keep an engine that fails a check of its layers or the self-test.
        force: build anew even where the bundle has the same engines.
        timeout_s: the longest time for one graph, in seconds.
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
        """Refuse options that are unknown or out of range.

        Raises:
            InputError: an option is one of these.
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
