"""Attention processors of diffusers' blocks, replaced for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["replaced_processors"]


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
