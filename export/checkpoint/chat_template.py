"""A tokenizer's chat template and vocabulary, as the bundle holds them."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Qwen2TokenizerFast

from rism.export.errors import CheckpointError
from rism.runtime.bundle.prompt_spec import PromptRules
from rism.runtime.errors import failures_as, one_line

TEMPLATE = "remove {expression}"
_MARK = "\ue000expression\ue001"  # private use: in no vocabulary, in no template


def open_tokenizer(folder: Path) -> Qwen2TokenizerFast:
    """Load the Qwen tokenizer of a folder and tokenize once, to find damage early.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    damaged = failures_as(
        lambda why: CheckpointError(f"{folder} holds no Qwen tokenizer ({why}): download it again")
    )
    with damaged:
        tokenizer = Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)
        tokenizer(TEMPLATE)
        return tokenizer


def cut_at_mark(
    tokenizer: PreTrainedTokenizerBase,
    content: Callable[[str], str | list[dict[str, str]]],
    **options: object,
) -> tuple[str, str]:
    """Render the chat template around a mark, and cut it there.

    Args:
        tokenizer: has the template.
        content: gives the user's message with the mark in it.
        options: of the template.

    Returns:
        What stands before the mark, and after it.

    Raises:
        CheckpointError: The template does not repeat its message word for word.
    """
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content(_MARK)}],
            tokenize=False,
            add_generation_prompt=True,
            **options,
        )
    except Exception as error:  # jinja's own kinds, and the library's where there is no template
        raise CheckpointError(
            f"the tokenizer's chat template cannot be used ({one_line(error, limit=120)}): "
            "download the tokenizer again"
        ) from None
    if rendered.count(_MARK) != 1:
        raise CheckpointError(
            "the tokenizer's chat template does not contain the message exactly once: "
            "expected that of a Qwen model"
        )
    prefix, suffix = rendered.split(_MARK)
    return prefix, suffix


def prompt_rules(tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> PromptRules:
    """Return the rules for prompts of text alone.

    Raises:
        CheckpointError: See `cut_at_mark`.
    """
    prefix, suffix = cut_at_mark(tokenizer, lambda mark: mark, enable_thinking=False)
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
