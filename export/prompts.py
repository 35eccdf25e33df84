"""A tokenizer's chat template and vocabulary, as the bundle holds them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from rism.export.errors import CheckpointError
from rism.runtime.manifest import PromptRules

__all__ = ["TEMPLATE", "prompt_rules", "tokenizer_json"]

TEMPLATE = "remove {expression}"
_MARK = "\ue000expression\ue001"  # private use: in no vocabulary, in no template


def prompt_rules(tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> PromptRules:
    """Render the chat template around a mark, and cut it there.

    Raises:
        CheckpointError: The template does not repeat its message word for word.
    """
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": _MARK}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    if rendered.count(_MARK) != 1:
        raise CheckpointError(
            "the tokenizer's chat template does not contain the message exactly once: "
            "expected a Qwen3 chat template in tokenizer/"
        )
    prefix, suffix = rendered.split(_MARK)
    return PromptRules(
        template=TEMPLATE,
        prefix=prefix,
        suffix=suffix,
        max_length=max_length,
        pad_id=int(tokenizer.pad_token_id),
        tokenizer="tokenizer.json",
    )


def tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer as a `tokenizers` file that neither pads nor truncates."""
    core = tokenizer.backend_tokenizer
    core.no_padding()
    core.no_truncation()
    text: str = core.to_str()
    return text
