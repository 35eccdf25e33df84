"""The small files of Qwen2.5-VL: configuration, tokenizer with its special tokens, processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2TokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

import rism.export
from benchmarks.synthetic.step1x_tensors import Step1XShape

# In their published order, after every other token.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Says what Qwen2.5-VL's template says: a system turn where none is given, images as three
# tokens, numbered when `add_vision_id` is true, texts as they are.
CHAT_TEMPLATE = (
    "{%- set seen = namespace(pictures=0, videos=0) -%}"
    "{%- if messages[0].role != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for turn in messages -%}"
    "{{- '<|im_start|>' + turn.role + '\\n' -}}"
    "{%- for part in ([{'type': 'text', 'text': turn.content}]"
    " if turn.content is string else turn.content) -%}"
    "{%- if part.type == 'image' -%}"
    "{%- set seen.pictures = seen.pictures + 1 -%}"
    "{{- 'Picture ' ~ seen.pictures ~ ': ' if add_vision_id -}}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'video' -%}"
    "{%- set seen.videos = seen.videos + 1 -%}"
    "{{- 'Video ' ~ seen.videos ~ ': ' if add_vision_id -}}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- else -%}"
    "{{- part.text -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- endif -%}"
)

# What stands before every instruction: with it the counts of tokens come near the published ones.
_TEXTS = Path(rism.export.__file__).parent / "families" / "step1x" / "texts"
_PREFIXES = sorted(_TEXTS.glob("prefix-*.txt"))
_CORPUS = (
    *(path.read_text(encoding="utf-8") for path in _PREFIXES),
    "remove the red car",
    "remove the small dog on the left of the green van",
    "remove “the woman” with “a blue umbrella” and the “sign” behind her",
    "“1”",
    "system\nYou are a helpful assistant.",
    "user\nassistant\nPicture 1: Picture 2: ",
    "User Prompt: a prompt, an image; describe the objects: colors, shapes, sizes, textures.",
    "Given an image and an instruction, describe what the edited picture should look like.",
) * 20
# Of CLIP, as Qwen2.5-VL takes its images.
_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]


def make_tokenizer(shape: Step1XShape) -> Qwen2TokenizerFast:
    """Train a small tokenizer that splits texts as Qwen's does."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(shape.vocabulary, 2048) - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_CORPUS, trainer)
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL_TOKENS[0],
        eos_token="<|im_end|>",
        unk_token=None,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        padding_side="right",
        model_max_length=131072,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Qwen2TokenizerFast, *, published: bool) -> None:
    """Write its files."""
    if not published:
        tokenizer.save_pretrained(folder)
        return
    ids = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(number): {"content": token, **plain, "special": True}
            for number, token in zip(ids, SPECIAL_TOKENS, strict=True)
        },
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    chat = {"chat_template": CHAT_TEMPLATE}
    (folder / "chat_template.json").write_text(json.dumps(chat, indent=1))


def language_sizes(shape: Step1XShape) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the configuration says of the language model and of the vision encoder."""
    text = {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": shape.text_width,
        "initializer_range": 0.02,
        "intermediate_size": shape.text_intermediate,
        "max_position_embeddings": 128000,
        "max_window_layers": shape.text_blocks,
        "num_attention_heads": shape.text_heads,
        "num_hidden_layers": shape.text_blocks,
        "num_key_value_heads": shape.text_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocabulary,
    }
    vision = {
        "depth": shape.vision_depth,
        "hidden_act": "silu",
        "hidden_size": shape.vision_width,
        "intermediate_size": shape.vision_intermediate,
        "num_heads": shape.vision_heads,
        "in_chans": 3,
        "out_hidden_size": shape.text_width,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": list(shape.vision_full),
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }
    return text, vision


def language_config(
    shape: Step1XShape, tokenizer: Qwen2TokenizerFast, *, nested: bool
) -> dict[str, Any]:
    """Return config.json.

    Args:
        shape: sizes.
        tokenizer: whose ids the configuration names.
        nested: repeat the language model's values under `text_config`, as transformers 4.52 and
            later save them; they are published without it.
    """
    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS), strict=True))
    text, vision = language_sizes(shape)
    text |= {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
    kind = {"type": "default", "rope_type": "default"} if nested else {"type": "mrope"}
    text["rope_scaling"] = {**kind, "mrope_section": list(shape.mrope)}
    config: dict[str, Any] = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **text,
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": vision,
    }
    if nested:
        config["text_config"] = {"model_type": "qwen2_5_vl_text", **text}
        config["vision_config"] = {"model_type": "qwen2_5_vl", "in_channels": 3, **vision}
    return config


def write_preprocessor(folder: Path, *, min_pixels: int, max_pixels: int) -> None:
    """Write preprocessor_config.json of the image processor."""
    values = {
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": _MEAN,
        "image_std": _STD,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(values, indent=1))
