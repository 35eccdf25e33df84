"""Safetensors files of random numbers, written a piece at a time, or of zeros that take no room.

What only needs names, shapes and types (tracing, building engines) gets sparse files of any size.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
# A prime: no two rows of a matrix begin at the same number.
_POOL = 2**22 - 3
_MODULATION = ("_mod.lin.weight", "modulation.lin.weight", "adaLN_modulation.1.weight")


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a tensor whose full shape is `shape`."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """A tensor as a file has it: runs of rows of other tensors, one after the other."""

    shape: tuple[int, ...]
    rows: tuple[Rows, ...]

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def unchanged(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Layout]:
    """Return tensors under their own names."""
    return {
        name: Layout(shape, (Rows(name, shape, 0, shape[0] if shape else 1),))
        for name, shape in shapes.items()
    }


def whole_tensors(parts: Mapping[str, Layout]) -> dict[str, Layout]:
    """Return the tensors that others are rows of."""
    return unchanged({rows.name: rows.shape for each in parts.values() for rows in each.rows})


def tensors_nbytes(tensors: Mapping[str, Layout], dtype: str) -> int:
    """Return how many bytes tensors of a type ("F32", "BF16") take in a file."""
    return sum(each.numel * _type_of(name, dtype).itemsize for name, each in tensors.items())


def write_shards(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Layout],
    count: int,
    numbers: RandomNumbers | None,
) -> None:
    """Write bfloat16 tensors as `count` files of about the same size, and their index.

    One file alone has no number and no index; without `numbers` files are sparse.
    """
    if count == 1:
        write_file(folder / f"{stem}.safetensors", tensors, "BF16", numbers)
        return
    total = tensors_nbytes(tensors, "BF16")
    shards: list[dict[str, Layout]] = [{} for _ in range(count)]
    before = 0
    for name, layout in tensors.items():
        shards[before * count // total][name] = layout
        before += tensors_nbytes({name: layout}, "BF16")
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{count:05d}.safetensors"
        write_file(folder / file, shard, "BF16", numbers)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_file(
    file: Path, tensors: Mapping[str, Layout], dtype: str, numbers: RandomNumbers | None
) -> None:
    """Write one file; see `write_shards`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    names = {kind: name for name, kind in _TYPES.items()}
    end = 0
    for name, layout in tensors.items():
        kind = _type_of(name, dtype)
        begin, end = end, end + layout.numel * kind.itemsize
        header[name] = {
            "dtype": names[kind], "shape": layout.shape, "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        if numbers is None:
            out.truncate(8 + len(text) + end)
            return
        for name, layout in tensors.items():
            for rows in layout.rows:
                for values in numbers.read(rows):
                    raw = values.to(_type_of(name, dtype)).view(torch.uint8)
                    out.write(raw.numpy().tobytes())


def _type_of(name: str, dtype: str) -> torch.dtype:
    return _TYPES["I64" if name.endswith("num_batches_tracked") else dtype]


class RandomNumbers:
    """Normal numbers, the same ones for the same name, read from any row on."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._normal = torch.empty(_POOL).normal_(generator=generator)

    def read(self, rows: Rows) -> Iterator[torch.Tensor]:
        """Yield numbers as a trained model has them: unit gain of a layer, scales near one."""
        row = math.prod(rows.shape[1:])
        first = zlib.crc32(rows.name.encode()) + rows.start * row
        left = (rows.stop - rows.start) * row
        centre, spread = _distribution(rows.name, rows.shape)
        while left:
            begin = first % _POOL
            piece = self._normal[begin : min(begin + left, _POOL)]
            yield centre + spread * piece
            first, left = first + len(piece), left - len(piece)


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and deviation of a tensor's numbers."""
    if name == "connector.scale_factor":
        return -0.91, 0.0
    if len(shape) > 1:
        gain = 2.0 if name.endswith(_MODULATION) else 1.0
        return 0.0, gain / math.sqrt(math.prod(shape[1:]))
    return (0.0, 0.02) if name.endswith(("bias", "running_mean")) else (1.0, 0.05)
