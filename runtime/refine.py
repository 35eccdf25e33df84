"""The hook between the template and the model: who may reword an instruction, and how.

The paper's best figures reword it with the model family's own instruction refiner (appendix A3).
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from rism.runtime.errors import InputError, one_line
from rism.runtime.prompt import Instruction, PromptEncoder

__all__ = ["Refiner", "refine"]


class Refiner(Protocol):
    """Whatever can be called with an instruction and a picture, and answers an instruction."""

    def __call__(self, instruction: str, image_hwc: npt.NDArray[np.uint8], /) -> str:
        """Reword an instruction.

        Args:
            instruction: the template with the expression in it, "remove the green van".
            image_hwc: (H, W, 3) uint8, the user's picture in RGB, upright; read-only.

        Returns:
            The instruction to use, without the model's chat prefix and suffix. The same text
            again is always right.
        """


def refine(
    refiner: Refiner,
    instruction: Instruction,
    image_hwc: npt.NDArray[np.uint8],
    encoder: PromptEncoder,
) -> Instruction:
    """Ask a refiner, and check its answer as an expression is checked.

    Raises:
        InputError: the refiner failed, or its answer cannot be used; the message names it.
    """
    name = one_line(getattr(refiner, "__qualname__", type(refiner).__qualname__), limit=80)
    try:
        answer = refiner(instruction.text, image_hwc)
    except Exception as error:  # whatever foreign code raises
        raise InputError(
            f"refiner '{name}' failed ({type(error).__name__}: {one_line(error, limit=200)}), "
            "expected an instruction: mend it, or run without"
        ) from error
    if answer == instruction.text:
        return instruction
    try:
        return encoder.reword(instruction, answer)
    except InputError as error:
        raise InputError(f"refiner '{name}' gave an unusable answer: {error}") from None
