"""The attention of diffusers' blocks, captured: processors replaced for a while, heads apart."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rism.export.attention_capture import Capture
from rism.export.graph.rotary import Rotary, rotate


def split_heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(B, N, heads * d) to (B, N, heads, d)."""
    # In numbers, where -1 would do: engines must see that queries and keys have as many heads.
    return x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim)


def heads_first(x: torch.Tensor) -> torch.Tensor:
    """(B, N, heads, d) to (B, heads, N, d)."""
    return x.transpose(1, 2)


def query(attn: Any, x: torch.Tensor) -> torch.Tensor:
    """(B, N, D) to normalised queries, (B, heads, N, d)."""
    return heads_first(attn.norm_q(split_heads(attn.to_q(x), attn.head_dim)))


def key(attn: Any, x: torch.Tensor) -> torch.Tensor:
    """(B, N, D) to normalised keys, (B, heads, N, d)."""
    return heads_first(attn.norm_k(split_heads(attn.to_k(x), attn.head_dim)))


def value(attn: Any, x: torch.Tensor) -> torch.Tensor:
    """(B, N, D) to values, (B, heads, N, d)."""
    return heads_first(split_heads(attn.to_v(x), attn.head_dim))


def attend_last(
    attn: Any, normal: torch.Tensor, rotary: Rotary, capture: Capture, index: int
) -> None:
    """Only attend in the last block: its MLP and output projection are not needed.

    Args:
        attn: has the projections and norms of queries, keys and values.
        normal: the block's modulated input, (B, N, D).
        rotary: of the sequence.
        capture: receives what is asked for.
        index: the block's number.
    """
    start = capture.spans.clean_start
    clean = normal[:, start:]
    capture.keep("adaln", index, clean)
    q = rotate(query(attn, clean), (rotary[0][start:], rotary[1][start:]))
    k = rotate(key(attn, normal), rotary)
    capture.probe(index, q, k)
    if capture.feature_block == index and capture.feature_site == "mmsa":
        capture.keep("mmsa", index, capture.attention(q, k, value(attn, normal)))


class BlockProcessor:
    """Attention of either kind of block; double-stream ones project the prompt separately."""

    def __init__(self, capture: Capture, index: int) -> None:
        self.capture, self.index = capture, index

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,  # noqa: ARG002 - diffusers passes it by place
        image_rotary_emb: Rotary,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend over the prompt and the image, or over a sequence of both."""
        image, text, spans = hidden_states, encoder_hidden_states, self.capture.spans
        clean = spans.clean_start if text is None else spans.noisy
        self.capture.keep("adaln", self.index, image[:, clean:])
        q = attn.norm_q(split_heads(attn.to_q(image), attn.head_dim))
        k = attn.norm_k(split_heads(attn.to_k(image), attn.head_dim))
        v = split_heads(attn.to_v(image), attn.head_dim)
        if text is not None:
            q = torch.cat(
                [attn.norm_added_q(split_heads(attn.add_q_proj(text), attn.head_dim)), q], dim=1
            )
            k = torch.cat(
                [attn.norm_added_k(split_heads(attn.add_k_proj(text), attn.head_dim)), k], dim=1
            )
            v = torch.cat([split_heads(attn.add_v_proj(text), attn.head_dim), v], dim=1)
        out = self.capture.attend(
            self.index,
            rotate(heads_first(q), image_rotary_emb),
            rotate(heads_first(k), image_rotary_emb),
            heads_first(v),
        )
        if text is None:
            return out
        length = spans.prompt
        return attn.to_out[0](out[:, length:]), attn.to_add_out(out[:, :length])


@contextmanager
def replaced_processors(blocks: Sequence[Any], make: Callable[[int], object]) -> Iterator[None]:
    """Give every block's attention the processor made for its number; the old ones come back."""
    before = [block.attn.processor for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.attn.processor = make(index)
        yield
    finally:
        for block, processor in zip(blocks, before, strict=True):
            block.attn.processor = processor
