"""Checkpoint files that are all header: their tensors are holes, which read as zeros.

What only needs names, shapes and types (tracing, building engines) gets a checkpoint of any size
that takes no room on the disk and no time to write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

__all__ = ["write_sparse"]

_SIZES = {"F32": 4, "BF16": 2}


def write_sparse(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    """Write a safetensors file of tensors of zeros.

    Args:
        file: to write.
        shapes: by name.
        dtype: of all of them, "BF16" or "F32".
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
