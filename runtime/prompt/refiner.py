"""Rewording of instructions by a refiner, between the template and the model.

The paper's best results use the model family's own instruction refiner (appendix A3).
"""

from collections.abc import Sequence
from typing import Protocol

from rism.runtime.arrays import Uint8
from rism.runtime.errors import InputError, one_line
from rism.runtime.prompt.encoder import Instruction, PromptEncoder


class Refiner(Protocol):
    """A function of an instruction and an image that returns an instruction."""

    def __call__(self, instruction: str, image_hwc: Uint8, /) -> str:
        """Reword an instruction.

        Args:
            instruction: the template with the expression in it, "remove the green van".
            image_hwc: (H, W, 3) uint8, the user's image in RGB, upright; read-only.

        Returns:
            The instruction to use, without the model's chat prefix and suffix; it may be the
            same.
        """


def refine(
    refiner: Refiner,
    instructions: Sequence[Instruction],
    image_hwc: Uint8 | None,
    encoder: PromptEncoder,
    *,
    image_tokens: int = 0,
) -> list[Instruction]:
    """Reword each distinct instruction once, and check the results by the encoder.

    The image is (H, W, 3) uint8; None from a state that was made without pixels.

    Raises:
        InputError: no pixels, or the refiner failed, or its result cannot be used.
    """
    if image_hwc is None:
        raise InputError(
            "the image state has no pixels for the refiner, expected one made by this segmenter: "
            "call its set_image"
        )
    reworded = {
        each: _reword(refiner, each, image_hwc, encoder, image_tokens)
        for each in dict.fromkeys(instructions)
    }
    return [reworded[each] for each in instructions]


def _reword(
    refiner: Refiner,
    instruction: Instruction,
    image_hwc: Uint8,
    encoder: PromptEncoder,
    image_tokens: int,
) -> Instruction:
    name = one_line(getattr(refiner, "__qualname__", type(refiner).__qualname__), limit=80)
    try:
        text = refiner(instruction.text, image_hwc)
    except InputError:  # its message is complete
        raise
    except Exception as error:  # of any foreign code
        raise InputError(
            f"refiner '{name}' failed ({type(error).__name__}: {one_line(error, limit=200)}), "
            "expected an instruction: correct it, or run without"
        ) from error
    if text == instruction.text:
        return instruction
    try:
        return encoder.reword(instruction, text, image_tokens=image_tokens)
    except InputError as error:
        raise InputError(f"refiner '{name}' returned an unusable instruction: {error}") from None
