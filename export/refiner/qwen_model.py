"""The Qwen2.5-VL of a checkpoint: loaded, and asked as Step1X-Edit's makers ask it.

Source: the "think" step of Step1X-Edit v1.2 (ReasonEdit, arXiv 2511.22625) in diffusers; the
words are in the family's `RefinerSpec`. Its makers sample; here the likeliest token is taken
every time, so that an answer can be had again.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from rism.export.checkpoint.chat_template import open_tokenizer
from rism.export.checkpoint.json_files import read_json
from rism.export.errors import CheckpointError, ExportError
from rism.export.plan.checkpoint_plan import free_memory
from rism.export.plan.text import size
from rism.export.refiner.qwen_files import LanguageFiles, stored_type
from rism.runtime.errors import InputError, failures_as, one_line

MIN_PIXELS, MAX_PIXELS = 262_144, 802_816
"""What the makers' processor brings every image between."""
LONGEST_SIDE = 1024
"""What an image is shrunk to first."""
_FACTOR = 28  # pixels per token, along a side
_MOST_TOKENS, _LEAST_TOKENS = 16_384, 4
_MOST_ELONGATED = 200
_CHINESE = re.compile("[\u4e00-\u9fff]")
_IMAGE_TOKEN = "<|image_pad|>"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Libraries, what flows between layers, and the keys and values of a prompt.
_BASE_BYTES = 1_500 * 2**20


class LanguageModel:
    """A Qwen2.5-VL that rewords instructions. `load` brings its weights into memory.

    Without them it can tell what it would be asked.
    """

    def __init__(self, files: LanguageFiles) -> None:
        """Load the tokenizer.

        Raises:
            CheckpointError: The tokenizer or its chat template cannot be used.
        """
        self.files = files
        self.device = ""
        self._model: Any = None
        self._tokenizer = open_tokenizer(files.tokenizer)
        self._chat = _chat_template(files.tokenizer) or self._tokenizer.chat_template
        self._control = [token for token in self._tokenizer.get_added_vocab() if token.strip()]
        self._image_processor = _image_processor(files)

    def prompt_digest(self) -> str:
        """Name what it is told around an instruction: SHA-256 of the rendered conversation."""
        return hashlib.sha256(self._render("\ue000").encode()).hexdigest()

    def control_token(self, text: str) -> str | None:
        """Return the first of the tokenizer's control tokens in a text, or None."""
        return next((token for token in self._control if token in text), None)

    def load(self, precision: str, provider: str) -> None:
        """Bring the weights to where they run.

        Args:
            precision: "fp32" or "bf16".
            provider: "cpu", "cuda", or "auto" for CUDA where torch has it.

        Raises:
            CheckpointError: They are missing, damaged, or not those of config.json.
            ExportError: Not enough memory, or no CUDA.
        """
        self.device = _choose_device(provider)
        _check_memory(self.files, precision, self.device)
        with _usable(self.files.weights, "language model"), _quiet_library():
            self._model, said = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                self.files.weights,
                dtype=_DTYPES[precision],
                device_map={"": self.device},
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        if said["missing_keys"]:
            name = min(said["missing_keys"])
            raise CheckpointError(
                f"{self.files.weights} lacks '{one_line(name)}' and perhaps more, expected all "
                "weights of config.json: download it again"
            )
        self._model.eval()

    @torch.inference_mode()
    def answer(
        self, instruction: str, image_hwc: npt.NDArray[np.uint8], *, max_new_tokens: int
    ) -> tuple[str, bool]:
        """Ask for an instruction in other words.

        Args:
            instruction: what to reword.
            image_hwc: (H, W, 3) uint8, the image in RGB.
            max_new_tokens: where to stop.

        Returns:
            The answer, stripped, and whether it came to its end.

        Raises:
            InputError: The image is too elongated.
            ExportError: The device has not enough memory.
        """
        inputs = self._inputs(instruction, image_hwc)
        end = self._tokenizer.eos_token_id
        try:
            ids = self._model.generate(
                **{name: value.to(self.device) for name, value in inputs.items()},
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=end,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        except torch.OutOfMemoryError as error:
            raise ExportError(
                f"{self.device} has not enough memory ({one_line(error, limit=120)}): close what "
                "else runs there, or take --provider cpu"
            ) from None
        said = ids[0, inputs["input_ids"].shape[1] :].tolist()
        text = self._tokenizer.decode(
            said, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text).strip(), bool(said) and said[-1] == end

    def _inputs(self, instruction: str, image_hwc: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """Put the conversation and the image as the model's own processor does."""
        seen = self._image_processor(images=[shrink(image_hwc)], return_tensors="pt")
        tokens = int(seen["image_grid_thw"][0].prod()) // self._image_processor.merge_size**2
        text = self._render(instruction).replace(_IMAGE_TOKEN, _IMAGE_TOKEN * tokens)
        inputs = {**self._tokenizer([text], return_tensors="pt"), **seen}
        # Newer releases of the library want to be told where the image is.
        if "mm_token_type_ids" in inspect.signature(self._model.forward).parameters:
            image_id = self._tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == image_id).long()
        return inputs

    def _render(self, instruction: str) -> str:
        system, user = _prompt(self.files.prompt)
        language = "中文" if len(_CHINESE.findall(instruction)) > 1 else "英文"
        told = user.replace("{language}", language).replace("{instruction}", instruction)
        conversation = [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": told}]},
        ]
        with _usable(self.files.tokenizer, "chat template"):
            text = self._tokenizer.apply_chat_template(
                conversation, chat_template=self._chat, tokenize=False, add_generation_prompt=True
            )
        if text.count(_IMAGE_TOKEN) != 1 or told not in text:
            raise CheckpointError(
                f"the chat template of {self.files.tokenizer} does not show one image and the "
                "text, expected that of Qwen2.5-VL: download it again"
            )
        return str(text)


def shrink(image_hwc: npt.NDArray[np.uint8]) -> Image.Image:
    """Bring an image to what the processor is given: at most 1024 a side, then whole tokens.

    Raises:
        InputError: It is too elongated for the model.
    """
    image = Image.fromarray(image_hwc)
    if max(image.size) > LONGEST_SIDE:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    width, height = image.size
    if max(width, height) > _MOST_ELONGATED * min(width, height):
        raise InputError(
            f"the image is {image_hwc.shape[1]} x {image_hwc.shape[0]} pixels, expected sides at "
            f"most 1 to {_MOST_ELONGATED}: crop it"
        )
    return image.resize(_whole_tokens(width, height), Image.Resampling.BICUBIC)


def _whole_tokens(width: int, height: int) -> tuple[int, int]:
    """Round a size to multiples of 28, as `qwen_vl_utils` does before the processor sees it."""
    most, least = _MOST_TOKENS * _FACTOR**2, _LEAST_TOKENS * _FACTOR**2
    wide, high = (max(_FACTOR, round(side / _FACTOR) * _FACTOR) for side in (width, height))
    if wide * high > most:
        scale = math.sqrt(width * height / most)
        return (
            max(_FACTOR, math.floor(width / scale / _FACTOR) * _FACTOR),
            max(_FACTOR, math.floor(height / scale / _FACTOR) * _FACTOR),
        )
    if wide * high < least:
        scale = math.sqrt(least / (width * height))
        return (
            math.ceil(width * scale / _FACTOR) * _FACTOR,
            math.ceil(height * scale / _FACTOR) * _FACTOR,
        )
    return wide, high


@cache
def _prompt(file: Path) -> tuple[str, str]:
    """Return what the system says, and what the user says after the image."""
    system, user = file.read_text(encoding="utf-8").split("\n---\n")
    return system, user.removesuffix("\n")


def _chat_template(folder: Path) -> str | None:
    """Return the processor's own template, which goes before the tokenizer's."""
    if (folder / "chat_template.jinja").is_file() or not (folder / "chat_template.json").is_file():
        return None  # the tokenizer reads the first by itself
    template = read_json(folder / "chat_template.json").get("chat_template")
    return template if isinstance(template, str) else None


def _image_processor(files: LanguageFiles) -> Any:
    """Load the processor that works on PIL's images, with the makers' limits."""
    # Older releases have it under the name that now means the one of torchvision.
    kind = getattr(transformers, "Qwen2VLImageProcessorPil", None)
    kind = kind or transformers.Qwen2VLImageProcessor
    names = ("preprocessor_config.json", "processor_config.json")
    places = [
        folder
        for folder in (files.tokenizer, files.weights)
        if any((folder / name).is_file() for name in names)
    ]
    limits = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    with _usable(files.tokenizer, "image processor"):
        if not places:
            return kind(**limits)
        found = kind.from_pretrained(places[0], local_files_only=True, **limits)
    sizes = (found.patch_size, found.merge_size, found.temporal_patch_size)
    vision = files.config().get("vision_config")
    told = vision if isinstance(vision, dict) else {}
    wanted = (
        told.get("patch_size", 14),
        told.get("spatial_merge_size", 2),
        told.get("temporal_patch_size", 2),
    )
    if sizes != wanted or sizes[0] * sizes[1] != _FACTOR:
        raise CheckpointError(
            f"the image processor of {places[0]} makes patches of {sizes}, the language model "
            f"takes {wanted}, expected (14, 2, 2) of both: download it again"
        )
    return found


def _choose_device(provider: str) -> str:
    if provider == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if provider == "cuda" and not torch.cuda.is_available():
        raise ExportError(
            "provider cuda is not there: torch sees no CUDA device, install a torch with CUDA, or "
            "take --provider cpu"
        )
    return provider


def _check_memory(files: LanguageFiles, precision: str, device: str) -> None:
    """Refuse, before a minute of reading, what would not fit."""
    stored = _BYTES.get(stored_type(files.config()), 2)
    width = _DTYPES[precision].itemsize
    needed = sum(file.stat().st_size for file in files.weight_files()) * width // stored
    needed += _BASE_BYTES
    free = int(torch.cuda.mem_get_info()[0]) if device == "cuda" else free_memory()
    if needed > free:
        hint = "close other programs" if precision == "bf16" else "take --precision bf16"
        if device == "cuda":
            hint += ", or take --provider cpu"
        raise ExportError(
            f"the language model needs {size(needed)} of memory on {device} in {precision}, "
            f"{size(free)} are free: {hint}"
        )


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Keep the library's bars and tables off stderr: what matters of them is an error here."""
    logging = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _usable(folder: Path, what: str) -> AbstractContextManager[None]:
    return failures_as(
        lambda why: CheckpointError(
            f"the {what} in {folder} cannot be used ({why}), expected that of Qwen2.5-VL: "
            "download it again"
        )
    )
