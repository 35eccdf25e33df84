"""Settings, input and progress of a run of the refiner."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rism.export.checkpoint.chat_template import TEMPLATE
from rism.export.names import REFINER_DEVICES, REFINER_PRECISIONS
from rism.runtime.errors import InputError, one_line
from rism.runtime.prompt.encoder import check_template, clean_expression

MAX_NEW_TOKENS = 128
_MOST_NEW_TOKENS = 2048
_MARK = "{expression}"


def _ignore(*_: object) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class RefineProgress:
    """Functions that a run reports to; each does nothing unless it is given.

    Attributes:
        reading: (done, total, name): `done` of `total` images are hashed, `name` is the next one.
        stage: (text): a long step begins, or something worth knowing happened.
        step: (done, total, name): `done` of `total` answers are there, `name` is the next image.
        failed: (text): an image or an instruction is left out, and why.
    """

    reading: Callable[[int, int, str], None] = _ignore
    stage: Callable[[str], None] = _ignore
    step: Callable[[int, int, str], None] = _ignore
    failed: Callable[[str], None] = _ignore


@dataclass(frozen=True)
class RefineSettings:
    """How instructions are made and answered.

    Attributes:
        template: the instruction, with {expression} in it; None for "remove {expression}".
        revision: branch, tag or commit on the hub.
        offline: use only what the hub's cache already holds.
        max_new_tokens: an answer is cut there.
        precision: "bf16" or "fp32"; None for what the weights are published in.
        provider: "cpu", "cuda", or "auto" for CUDA where it is; the report says which.

    Raises:
        InputError: One of them cannot be used.
    """

    template: str | None = None
    revision: str | None = None
    offline: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS
    precision: str | None = None
    provider: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be used before anything is read."""
        if self.template is not None:
            check_template(self.template)
        if not 1 <= self.max_new_tokens <= _MOST_NEW_TOKENS:
            raise InputError(
                f"max_new_tokens is {self.max_new_tokens}, expected 1 to {_MOST_NEW_TOKENS}"
            )
        if self.precision not in (None, *REFINER_PRECISIONS):
            raise InputError(
                f"precision is '{one_line(self.precision)}', expected one of "
                f"{', '.join(REFINER_PRECISIONS)} (float16 is too narrow for this model)"
            )
        if self.provider not in REFINER_DEVICES:
            raise InputError(
                f"provider is '{one_line(self.provider)}', expected one of "
                f"{', '.join(REFINER_DEVICES)}"
            )

    def instruct(self, expression: str) -> str:
        """Return what is said for an expression, as a segmenter with this template says it.

        Raises:
            InputError: The expression cannot be used.
        """
        template = TEMPLATE if self.template is None else check_template(self.template)
        return template.replace(_MARK, clean_expression(expression))


@dataclass(frozen=True)
class ImageExpressions:
    """An image and the expressions to segment in it.

    Attributes:
        name: its file, or its name in a dataset.
        read: returns its pixels as a segmenter will be given them, (H, W, 3) uint8 RGB; raises
            InputError where it cannot.
        expressions: texts that name the objects.
    """

    name: str
    read: Callable[[], npt.NDArray[np.uint8]]
    expressions: Sequence[str]
