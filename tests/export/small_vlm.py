"""A small random Qwen2.5-VL in the published layout, which answers in words it is given."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
)

from benchmarks.synthetic.qwen_files import CHAT_TEMPLATE
from mini.tokenizer import train_tokenizer
from rism.export.refiner.qwen_model import LanguageModel

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
WORDS = ("remove", "the", "red", "small", "green", "car", "dog", "left")


def make_vlm(
    folder: Path,
    *,
    processor: Path | None = None,
    ending: float = 0.0,
    seed: int = 0,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Write a random checkpoint with the classes the published one is made of; return the folder.

    It says `WORDS` and no others, in an order that picture and prompt decide.

    Args:
        folder: where the weights go.
        processor: where tokenizer and picture processor go; None for beside the weights.
        ending: how eager it is to end, beside 1 for every word; 0 for never.
        seed: of the weights.
        generation: of generation_config.json.
    """
    tokenizer = make_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_window_layers": 2,
            "rope_parameters": rope,
            "initializer_range": 0.4,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 112,
            "initializer_range": 0.4,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        initializer_range=0.4,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    said = [tokenizer(f" {word}").input_ids[0] for word in WORDS]
    scale = torch.zeros(len(tokenizer), 1)
    scale[said], scale[ids("<|im_end|>")] = 1.0, ending
    with torch.no_grad():
        model.lm_head.weight *= scale
    model.save_pretrained(folder)
    values = {"eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>")}
    (folder / "generation_config.json").write_text(json.dumps(values | (generation or {})))
    beside = processor or folder
    tokenizer.save_pretrained(beside)
    picture_processor().save_pretrained(beside)
    return folder


def make_tokenizer() -> Qwen2TokenizerFast:
    """A byte-level tokenizer that has each word as one token, with Qwen2.5-VL's special ones."""
    tokenizer = train_tokenizer([" " + " ".join(WORDS)] * 50, vocab_size=400)
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    assert all(len(tokenizer(f" {word}").input_ids) == 1 for word in WORDS)
    return tokenizer


def picture_processor(**limits: int) -> Any:
    """Qwen2.5-VL's, without torchvision."""
    return transformers.Qwen2VLImageProcessorPil(**limits)


def real_processor(folder: Path, **limits: int) -> Qwen2_5_VLProcessor:
    """The family's own processor over what lies in a folder; videos need torchvision."""

    class WithoutVideos(Qwen2_5_VLProcessor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, *_: object) -> None:
            """Let the missing video processor pass."""

    tokenizer = Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)
    return WithoutVideos(
        picture_processor(**limits), tokenizer, None, chat_template=tokenizer.chat_template
    )


def say(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[str]:
    """Let the language model give these answers, then "Remove it.".

    An exception is raised instead; a pair says whether the answer is whole.

    Returns:
        The instructions that it is asked, as they come.
    """
    asked: list[str] = []
    left = list(answers)

    def answer(self: Any, instruction: str, image: Any, *, max_new_tokens: int) -> Any:
        asked.append(instruction)
        said = left.pop(0) if left else "Remove it."
        if isinstance(said, BaseException):
            raise said
        return said if isinstance(said, tuple) else (said, True)

    monkeypatch.setattr(LanguageModel, "answer", answer)
    monkeypatch.setattr(LanguageModel, "load", lambda self, *_: setattr(self, "device", "cpu"))
    return asked
