"""Tensors of a checkpoint, read from safetensors as they are needed, never all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rism.export.checkpoint.json_files import list_files, read_json
from rism.export.errors import CheckpointError
from rism.runtime.errors import failures_as, one_line

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CHUNK_BYTES = 64 * 2**20
_SHARDS = 512


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, or some of its rows, not yet read.

    Attributes:
        file: the safetensors file; None if the tensor exists only to plan with, and reads as zeros.
        key: name in the file.
        shape: of this tensor (after `start`).
        dtype: as stored.
        start: first row, where the file holds several tensors as one.
    """

    file: Path | None
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.dtype.itemsize * math.prod(self.shape)

    def rows(self, start: int, stop: int) -> StoredTensor:
        """Return rows [start, stop) as a tensor of its own."""
        shape = (stop - start, *self.shape[1:])
        return replace(self, shape=shape, start=self.start + start)

    def squeezed(self) -> StoredTensor:
        """Return it without axes of size one at its end: a 1 x 1 convolution as a matrix."""
        shape = self.shape
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
        return replace(self, shape=shape)

    def flattened(self) -> StoredTensor:
        """Return it as a matrix: a convolution over whole patches is a product."""
        return replace(self, shape=(self.shape[0], math.prod(self.shape[1:])))

    def read(self) -> torch.Tensor:
        """Read it whole, as stored."""
        chunks = list(self.chunks())
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def chunks(self, nbytes: int = _CHUNK_BYTES) -> Iterator[torch.Tensor]:
        """Read runs of rows of about `nbytes` each; together they are the tensor.

        The file is mapped for one run at a time: pages that stay mapped count as memory of this
        process.

        Raises:
            CheckpointError: The file changed or went away.
        """
        if not self.shape or self.nbytes <= nbytes:
            yield self._read(0, self.shape[0] if self.shape else 0)
            return
        step = max(1, nbytes * self.shape[0] // self.nbytes)
        for first in range(0, self.shape[0], step):
            yield self._read(first, min(first + step, self.shape[0]))

    def _read(self, first: int, last: int) -> torch.Tensor:
        if self.file is None:
            return torch.zeros((last - first, *self.shape[1:]), dtype=self.dtype)
        damaged = failures_as(
            lambda why: CheckpointError(
                f"{self.file} cannot be read any more ({why}): "
                "leave the checkpoint alone while it is exported"
            )
        )
        with damaged, safe_open(self.file, framework="pt") as file:
            if not self.shape:
                scalar: torch.Tensor = file.get_tensor(self.key).clone()
                return scalar
            view = file.get_slice(self.key)
            rows: torch.Tensor = view[self.start + first : self.start + last].clone()
            return rows.reshape(last - first, *self.shape[1:])


@dataclass(frozen=True)
class ComputedTensor(StoredTensor):
    """A tensor that is computed from others of the checkpoint when it is read.

    Attributes:
        compute: returns it; the key stands for all that goes into it.
    """

    compute: Callable[[], torch.Tensor] = field(kw_only=True, compare=False)

    def chunks(self, _nbytes: int = _CHUNK_BYTES) -> Iterator[torch.Tensor]:
        """Compute it, as one run of rows."""
        yield self.compute()


class TensorStore(Mapping[str, StoredTensor]):
    """The tensors of one part of a model, by parameter name."""

    def __init__(self, part: str, tensors: Mapping[str, StoredTensor]) -> None:
        self.part = part
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> StoredTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(
                f"{self.part} has no tensor '{name}': download it again"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def expect(self, shapes: Mapping[str, Iterable[int]], *, optional: Iterable[str] = ()) -> None:
        """Compare names and shapes with those of a model class.

        Args:
            shapes: every parameter and buffer of the model.
            optional: names that may be absent (a tied output embedding).

        Raises:
            CheckpointError: A tensor is missing, unknown or of another shape; it is named.
        """
        absent = sorted(set(shapes) - set(self._tensors) - set(optional))
        if absent:
            raise CheckpointError(
                f"{self.part} lacks {len(absent)} of {len(shapes)} tensors its configuration asks "
                f"for, such as {absent[0]}: download it again, or mend its config.json"
            )
        foreign = sorted(set(self._tensors) - set(shapes))
        if foreign:
            raise CheckpointError(
                f"{self.part} holds {len(foreign)} tensors that its configuration has no place "
                f"for, such as {one_line(foreign[0], limit=100)}: expected the model that "
                "config.json describes"
            )
        for name, shape in shapes.items():
            if name in self._tensors and self._tensors[name].shape != tuple(shape):
                raise CheckpointError(
                    f"{self.part}: tensor {name} has shape {list(self._tensors[name].shape)}, "
                    f"config.json asks for {list(shape)}: the two are of different models"
                )

    def expect_some(
        self, shapes: Mapping[str, tuple[int, ...]], used: Callable[[str], bool]
    ) -> None:
        """Likewise for the tensors that are used; the others may be there or not."""
        wanted = {name: shape for name, shape in shapes.items() if used(name)}
        kept = {name: tensor for name, tensor in self._tensors.items() if name in wanted}
        optional = ["bn.num_batches_tracked"]
        TensorStore(self.part, kept).expect(wanted, optional=optional)

    def renamed(self, names: Mapping[str, str]) -> TensorStore:
        """Return the tensors `names` maps to, under the names it maps from."""
        return TensorStore(self.part, {new: self[old] for new, old in names.items()})


def fake_store(part: str, shapes: Mapping[str, tuple[int, ...]]) -> TensorStore:
    """Return bfloat16 tensors of these shapes that are in no file, to plan an export with."""
    tensors = {k: StoredTensor(None, k, shape, torch.bfloat16) for k, shape in shapes.items()}
    return TensorStore(part, tensors)


def open_folder(folder: Path) -> TensorStore:
    """Open a part's folder: one safetensors file, or shards with an index.

    Only headers are read. Every shard the index names must be there and whole.

    Raises:
        CheckpointError: A file is missing, cut short, or not safetensors.
    """
    indices = list_files(folder, "*.safetensors.index.json")
    files = list_files(folder, "*.safetensors") or sorted(folder.glob("*.safetensors"))
    if len(indices) > 1 or (not indices and len(files) != 1):
        found = f"{len(indices)} indices and {len(files)} .safetensors files"
        raise CheckpointError(
            f"{folder} holds {found if files else 'no .safetensors file'}: expected one "
            "safetensors file, or shards and their index (pickled weights are never loaded)"
        )
    if not indices:
        return TensorStore(folder.name, read_headers(files[0]))
    index = read_json(indices[0])
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise CheckpointError(f"{indices[0]} has no weight_map: download it again")
    shards = sorted(set(places.values()))
    if len(shards) > _SHARDS or any(Path(name).name != name for name in shards):
        raise CheckpointError(
            f"{indices[0]} names files outside {folder}, or more than {_SHARDS}: do not use it"
        )
    absent = [name for name in shards if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {len(absent)} of {len(shards)} shards, such as {absent[0]}: "
            "the download is not complete, run it again"
        )
    headers = {name: read_headers(folder / name) for name in shards}
    tensors = {}
    for name, shard in places.items():
        if name not in headers[shard]:
            raise CheckpointError(
                f"{folder / shard} has no tensor {one_line(name, limit=100)}, which "
                f"{indices[0].name} places there: download it again"
            )
        tensors[name] = headers[shard][name]
    return TensorStore(folder.name, tensors)


# Ends of names of tensors that tools for weights in few bits add, and what they made.
_QUANTISED = {
    ".absmax": "bitsandbytes",
    ".quant_state": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale": "FP8 with scales",
    ".scale_weight": "FP8 with scales",
    "scaled_fp8": "FP8 with scales",
    ".weight_scale_inv": "FP8 with scales",
    ".comfy_quant": "FP8 with scales",
    ".qweight": "GPTQ or AWQ",
    ".wscales": "SVDQuant",
}


def _refuse_quantised(file: Path, names: Iterable[str]) -> None:
    """Refuse weights that mean nothing without the scales beside them.

    Raises:
        CheckpointError: They are such.
    """
    for name in names:
        for ending, tool in _QUANTISED.items():
            if name.endswith(ending) or f"{ending}." in name:
                raise CheckpointError(
                    f"{file.name} holds weights in few bits ({tool}: {one_line(name, limit=80)}), "
                    "expected floats: give the BF16 or FP16 release of this model, and --precision "
                    "int8 or int4"
                )


def read_headers(file: Path) -> dict[str, StoredTensor]:
    """Names, shapes and dtypes of one safetensors file; the library checks the file's length.

    Raises:
        CheckpointError: The file is cut short, damaged, or holds a type that is not known here.
    """
    found = {}
    if file.name.startswith("._"):
        raise CheckpointError(
            f"{file} is no safetensors file but metadata that macOS keeps about one: give "
            f"{file.name[2:]}"
        )
    damaged = failures_as(
        lambda why: CheckpointError(
            f"{file} is cut short or is no safetensors file ({why}): download it again"
        )
    )
    with damaged, safe_open(file, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - not a mapping
            view: Any = opened.get_slice(key)
            found[key] = (tuple(view.get_shape()), str(view.get_dtype()))
    _refuse_quantised(file, found)
    unknown = sorted({dtype for _, dtype in found.values()} - set(DTYPES))
    if unknown:
        raise CheckpointError(
            f"{file} holds {unknown[0]} tensors, expected one of {', '.join(DTYPES)}: "
            "use the BF16 or FP16 release of this model"
        )
    return {
        key: StoredTensor(file, key, shape, DTYPES[dtype]) for key, (shape, dtype) in found.items()
    }
