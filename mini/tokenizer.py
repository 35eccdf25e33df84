"""The byte-level BPE tokenizer of `mini`, with the chat template of its text encoder.

The vocabulary is trained on the expressions of the generated scenes, whose words become one token
each; any other text is split into bytes, never into an unknown token.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2TokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
PAD_TOKEN = SPECIAL_TOKENS[0]

# The same text as Qwen3's template for plain messages: one turn per message, then an assistant
# turn, with an empty thinking block when `enable_thinking` is false.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)


def train_tokenizer(corpus: Iterable[str], *, vocab_size: int = 2048) -> Qwen2TokenizerFast:
    """Train the tokenizer on `corpus`, an iterable of instructions."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    template_words = ["user\n", "assistant\n", "\n\n", "system\n"] * 1000
    core.train_from_iterator([*corpus, *template_words], trainer)
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=core,
        pad_token=PAD_TOKEN,
        eos_token="<|im_end|>",
        unk_token=PAD_TOKEN,
        padding_side="right",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
