"""A tokenizer like that of a text encoder that looks at pictures, trained on the spot."""

from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

from rism.runtime.prompt_spec import PromptRules, QuoteRules, VisionRules

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|image_pad|>"]
PLAIN = ["<tool_call>", "</tool_call>"]
PREFIX = "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\nEnhance \"it\": 'now'"
PICTURE = "Picture 1: <|vision_start|><|image_pad|><|vision_end|>"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
WORDS += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = [
    "remove the man's hat and the \u201csign\u201d that says \u201cSTOP\u201d",
    'Picture 1: the "green" van 招牌 \u201c停\u201d system user assistant helpful enhance',
    "\u201c \u201d \u201c \u201d \u201ca\u201d \u201cb\u201d",
] * 5

VISION = VisionRules(
    image_token="<|image_pad|>",
    view_resample="lanczos",
    align=False,
    resample="bicubic",
    min_pixels=4 * 28 * 28,
    max_pixels=9 * 28 * 28,
    patch_px=14,
    merge=2,
    frames=2,
    mean=(0.5, 0.4, 0.3),
    std=(0.3, 0.2, 0.1),
)


@cache
def tokenizer_json() -> bytes:
    """Byte-level, with the model family's own way of cutting words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre.Sequence([pre.Split(Regex(WORDS), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = ["!", *(c for c in pre.ByteLevel.alphabet() if c != "!")]
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=alphabet, special_tokens=[]
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in PLAIN])
    return tokenizer.to_str().encode()


def tokenizer() -> Tokenizer:
    return Tokenizer.from_buffer(tokenizer_json())


def rules(**changes: Any) -> PromptRules:
    """Like the first generation of editors: the picture before the instruction."""
    given: dict[str, Any] = {
        "template": "remove {expression}",
        "prefix": PREFIX + PICTURE,
        "suffix": SUFFIX,
        "max_length": 300,
        "pad_id": 3,
        "tokenizer": "tokenizer.json",
        "drop": 5,
        "padding": "zeros",
        "unseen_id": 0,
        "unseen_attended": False,
        "quotes": QuoteRules("toggle", len(PREFIX)),
        "vision": VISION,
    }
    return PromptRules(**{**given, **changes})


def later_rules(**changes: Any) -> PromptRules:
    """Like the second generation: the picture after it, and positions on the grid."""
    given: dict[str, Any] = {
        "prefix": PREFIX + " ",
        "suffix": PICTURE + SUFFIX,
        "padding": "none",
        "unseen_attended": True,
        "positions": "grid",
        "grid_offset_px": 11.0,
        "quotes": QuoteRules("paired", len(PREFIX)),
    }
    return rules(**{**given, **changes})
