"""Weights as ONNX external data: from the checkpoint into the bundle, tensor by tensor."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir
import torch

from rism.export.checkpoint.meta_modules import WeightRule
from rism.export.checkpoint.safetensors_store import StoredTensor
from rism.export.errors import ExportError
from rism.export.graph.block_products import BLOCK_WEIGHT, INTEGERS, SCALES
from rism.export.graph.passes import TRANSPOSED
from rism.export.quantisation.block_rounding import BlockRounding
from rism.runtime.engines.malloc_trim import trim_malloc

_INLINE_BYTES = 1024
_GIVE_BACK_BYTES = 256 * 2**20
_PAGE = 4096
_LINE = 64
_TORCH_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.BOOL: torch.bool,
}

OnBytes = Callable[[int], None]


class WeightFile:
    """One `.weights` file: tensors at aligned offsets, each written once.

    Large tensors start on a page, so that readers can map them. The file is hashed as it grows;
    it is never read again.

    Args:
        path: a file that does not exist yet.
        on_bytes: told how many bytes were written, after each piece.

    Attributes:
        rounding_errors: of weights that were rounded to few bits, by name: the root mean square
            of the error over that of the weight.
    """

    def __init__(self, path: Path, on_bytes: OnBytes | None = None) -> None:
        self.path, self.size = path, 0
        self.rounding_errors: dict[str, float] = {}
        self._given_back = 0
        self._on_bytes = on_bytes or (lambda _count: None)
        self._hash = hashlib.sha256()
        self._places: dict[object, int] = {}
        self._file: BinaryIO = path.open("xb")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()

    @property
    def sha256(self) -> str:
        """Digest of what was written so far, in hexadecimal digits."""
        return self._hash.hexdigest()

    def flush(self) -> None:
        """Let readers see what was written."""
        self._file.flush()

    def add(self, key: object, length: int, chunks: Callable[[], Iterable[torch.Tensor]]) -> int:
        """Write a tensor under `key`, unless it is there; return where it begins.

        Args:
            key: what makes the tensor the same one: its name and form, or a digest.
            length: its bytes.
            chunks: its runs of rows, contiguous, asked for only if they are needed.
        """
        if key in self._places:
            return self._places[key]
        align = _PAGE if length >= _PAGE else _LINE
        self._write(memoryview(bytes(-self.size % align)))
        start = self.size
        for chunk in chunks():
            self._write(_raw(chunk))
        if self.size != start + length:
            raise ExportError(
                f"{self.path.name}: {self.size - start} bytes for {key}, expected {length}"
            )
        self._places[key] = start
        if self.size - self._given_back > _GIVE_BACK_BYTES:
            self._given_back = self.size
            trim_malloc()
        return start

    def _write(self, data: memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        self._on_bytes(len(data))


def store_weights(model: ir.Model, rules: Mapping[str, WeightRule], file: WeightFile) -> None:
    """Give a traced graph its weights: small ones inline, the others in `file`.

    Args:
        model: initializers as `rism.export.graph.trace.trace` left them: their types and shapes are
            those to be stored.
        rules: values by the names of the initializers.
        file: may hold them already, from another graph.

    Raises:
        ExportError: A weight is not finite in the type that it is stored in.
        CheckpointError: The checkpoint cannot be read any more.
    """
    for name, value in model.graph.initializers.items():
        given = value.const_value
        if given is not None:
            # A pass made it: the same content in every graph, under names that differ.
            if (length := given.nbytes) < _INLINE_BYTES:
                continue
            # As bytes: NumPy and torch do not agree on what a bfloat16 is.
            tensor = torch.frombuffer(bytearray(given.tobytes()), dtype=torch.uint8)
            key: object = hashlib.sha256(_raw(tensor)).digest()
            start = file.add(key, length, lambda tensor=tensor: [tensor])  # type: ignore[misc]
            dtype, shape = given.dtype, ir.Shape(given.shape.numpy())
        else:
            assert value.shape is not None
            assert value.dtype is not None
            dtype, shape = value.dtype, ir.Shape(value.shape)
            if BLOCK_WEIGHT in value.meta:
                weight, rounding, kind = value.meta[BLOCK_WEIGHT]
                start, length = _store_rounded(file, weight, rules[weight], rounding)[kind]
                value.const_value = _external(file, name, start, length, dtype, shape)
                continue
            wanted = _TORCH_TYPES[dtype]
            turned = bool(value.meta.get(TRANSPOSED))
            length = wanted.itemsize * math.prod(shape.numpy())
            pieces = _Pieces(name, rules[name], wanted, turned=turned)
            if length < _INLINE_BYTES:
                whole = torch.cat([piece.reshape(-1) for piece in pieces()])
                value.const_value = _inline(whole, dtype, shape, name)
                continue
            # A graph of a few blocks numbers them otherwise: where it comes from is what counts.
            source = rules[name] if isinstance(rules[name], StoredTensor) else name
            start = file.add((source, str(wanted), turned), length, pieces)
        value.const_value = _external(file, name, start, length, dtype, shape)


def _external(
    file: WeightFile, name: str, start: int, length: int, dtype: ir.DataType, shape: ir.Shape
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location=file.path.name,
        offset=start,
        length=length,
        dtype=dtype,
        shape=shape,
        name=name,
        base_dir=str(file.path.parent),
    )


def _store_rounded(
    file: WeightFile, name: str, rule: WeightRule, rounding: BlockRounding
) -> dict[str, tuple[int, int]]:
    """Round a weight and write its integers and scales, unless they are there.

    It is read and rounded once, a few rows at a time; its scales follow its integers.

    Returns:
        Where integers and scales begin, and their bytes.
    """
    source, scales = rule if isinstance(rule, StoredTensor) else name, list[torch.Tensor]()
    squares = [0.0, 0.0]

    def integers() -> Iterator[torch.Tensor]:
        for rows in rule.chunks() if isinstance(rule, StoredTensor) else [rule]:
            if not rows.isfinite().all():
                raise ExportError(
                    f"{name} holds numbers that are not finite, expected a sound checkpoint: "
                    "download it again"
                )
            found, own, (error, size) = rounding.quantise_measured(rows)
            if own.isinf().any():
                raise _too_large(name, rows)
            scales.append(own)
            squares[0], squares[1] = squares[0] + error, squares[1] + size
            yield rounding.pack(found)
        file.rounding_errors[name] = math.sqrt(squares[0] / max(squares[1], 1e-30))

    sizes = {
        INTEGERS: math.prod(rule.shape) * rounding.bits // 8,
        SCALES: 2 * math.prod(rounding.scales_shape(rule.shape)),
    }
    pieces = {INTEGERS: integers, SCALES: lambda: scales}
    return {
        kind: (file.add((source, rounding, kind), length, pieces[kind]), length)
        for kind, length in sizes.items()
    }


@dataclass(frozen=True)
class _Pieces:
    """The values of one weight in the type and form that are stored, in runs of rows."""

    name: str
    rule: WeightRule
    dtype: torch.dtype
    turned: bool

    def __call__(self) -> Iterator[torch.Tensor]:
        if self.turned:
            yield self._cast(_read(self.rule)).t().contiguous()
            return
        parts = self.rule.chunks() if isinstance(self.rule, StoredTensor) else [self.rule]
        for part in parts:
            yield self._cast(part)

    def _cast(self, part: torch.Tensor) -> torch.Tensor:
        narrow = part.to("cpu", self.dtype)
        if self.dtype == torch.float16 and part.dtype != self.dtype and narrow.isinf().any():
            raise _too_large(self.name, part)
        return narrow


def _too_large(name: str, part: torch.Tensor) -> ExportError:
    return ExportError(
        f"{name} holds {float(part.abs().max()):.3g}, more than float16 can: export "
        "with --precision bf16 or fp32"
    )


def _read(rule: WeightRule) -> torch.Tensor:
    return rule.read() if isinstance(rule, StoredTensor) else rule


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, row-major (little-endian on every machine torch runs on)."""
    flat = tensor.detach().contiguous().reshape(-1)
    # NumPy's arrays are buffers; its types do not say so.
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _inline(
    tensor: torch.Tensor, dtype: ir.DataType, shape: ir.Shape, name: str
) -> ir.TensorProtocol:
    array = tensor.view(torch.uint8).numpy().view(dtype.numpy())
    return ir.Tensor(array.reshape(shape.numpy()), dtype=dtype, name=name)
