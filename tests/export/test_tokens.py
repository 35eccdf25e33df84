"""Tokens without transformers at run time are those of transformers."""

# ruff: noqa: RUF001 - letters that look alike are what is tested

import random
from pathlib import Path

import pytest
from transformers import Qwen2TokenizerFast

from rism.export.checkpoint.chat_template import prompt_rules, tokenizer_json
from rism.runtime import InputError
from rism.runtime.prompt.encoder import PromptEncoder, clean_expression

WORDS = [
    "the", "red", "van", "café", "naïve", "Ωmega", "слева", "汽车", "右側", "السيارة", "🚗",
    "👩\u200d🚀", "e\u0301", "ﬁ", "№5", "½", "don't", '"quoted"', "‘curly’", "“double”", "a,b",
    "(left)", "x" * 40, "1234567", "3.14", "C++", "#tag", "@home", "back\\slash", "percent%",
    "{braces}", "[x]", "~", "…", "<b>", "&amp;", "I", "ı", "ß", "\u00a0", "\u200b", "\u3000",
    "Ａ", "kg/m²", "–", "—",
]  # fmt: skip


def strings() -> list[str]:
    """1,000 expressions: words of many scripts, odd spaces, quotes, every length."""
    rng = random.Random(0)
    spaces = [" ", " ", " ", "  ", "\t", "\n", ""]
    made = []
    while len(made) < 1000:
        count = rng.randint(1, 12)
        text = "".join(rng.choice(WORDS) + rng.choice(spaces) for _ in range(count))
        if text.strip("\u200b \t\n\u00a0\u3000"):
            made.append(text)
    return made


def test_tokens_are_those_of_transformers(checkpoint: Path) -> None:
    tokenizer = Qwen2TokenizerFast.from_pretrained(checkpoint / "tokenizer")
    rules = prompt_rules(tokenizer, max_length=512)
    encoder = PromptEncoder(rules, tokenizer_json(tokenizer).encode())
    for text in strings():
        said = f"remove {clean_expression(text)}"
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": said}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        wanted = tokenizer(rendered, padding="max_length", truncation=True, max_length=512)
        found = encoder.encode([text])
        assert found.input_ids[0].tolist() == wanted["input_ids"], text
        assert found.attention_mask[0].tolist() == wanted["attention_mask"], text
    # The pipeline would cut it, and the model would be told to remove half a thing.
    with pytest.raises(InputError, match=r"makes a prompt of \d+ tokens, expected at most 512"):
        encoder.encode(["a red van " * 400])
