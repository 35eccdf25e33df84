"""The hook between the template and the model: who may reword an instruction, and how.

The paper's best figures reword it with the model family's own instruction refiner (appendix A3).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rism.runtime.errors import InputError, one_line
from rism.runtime.prompt.encoder import Instruction, PromptEncoder

__all__ = ["Refiner", "refine"]


class Refiner(Protocol):
    """Whatever can be called with an instruction and an image, and answers an instruction."""

    def __call__(self, instruction: str, image_hwc: npt.NDArray[np.uint8], /) -> str:
        """Reword an instruction.

        Args:
            instruction: the template with the expression in it, "remove the green van".
            image_hwc: (H, W, 3) uint8, the user's image in RGB, upright; read-only.

        Returns:
            The instruction to use, without the model's chat prefix and suffix. The same text
            again is always right.
        """


def refine(
    refiner: Refiner,
    instructions: Sequence[Instruction],
    image_hwc: npt.NDArray[np.uint8] | None,
    encoder: PromptEncoder,
    *,
    image_tokens: int = 0,
) -> list[Instruction]:
    """Ask a refiner once for each distinct instruction, and check what it answers.

    Args:
        refiner: whom to ask.
        instructions: what was rendered.
        image_hwc: (H, W, 3) uint8, the image; None where a state came without it.
        encoder: knows what may not be in an instruction.
        image_tokens: how many tokens of a prompt stand for the image.

    Raises:
        InputError: no image, or the refiner failed, or its answer cannot be used as an
            expression could not; the message names the refiner.
    """
    if image_hwc is None:
        raise InputError(
            "the image state has no pixels for the refiner to look at, expected one made by this "
            "segmenter: call its set_image"
        )

    def usable(instruction: Instruction, answer: str) -> Instruction:
        return encoder.reword(instruction, answer, image_tokens=image_tokens)

    said = {told: _reword(refiner, told, image_hwc, usable) for told in dict.fromkeys(instructions)}
    return [said[told] for told in instructions]


def _reword(
    refiner: Refiner,
    instruction: Instruction,
    image_hwc: npt.NDArray[np.uint8],
    usable: Callable[[Instruction, str], Instruction],
) -> Instruction:
    name = one_line(getattr(refiner, "__qualname__", type(refiner).__qualname__), limit=80)
    try:
        answer = refiner(instruction.text, image_hwc)
    except InputError:  # one of ours says itself what is wrong
        raise
    except Exception as error:  # whatever foreign code raises
        raise InputError(
            f"refiner '{name}' failed ({type(error).__name__}: {one_line(error, limit=200)}), "
            "expected an instruction: mend it, or run without"
        ) from error
    if answer == instruction.text:
        return instruction
    try:
        return usable(instruction, answer)
    except InputError as error:
        raise InputError(f"refiner '{name}' gave an unusable answer: {error}") from None
