"""The attention of diffusers' blocks: processors replaced for a while, heads apart."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def split_heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(B, N, heads * d) to (B, N, heads, d)."""
    return x.reshape(*x.shape[:-1], -1, head_dim)


def heads_first(x: torch.Tensor) -> torch.Tensor:
    """(B, N, heads, d) to (B, heads, N, d)."""
    return x.transpose(1, 2)


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
