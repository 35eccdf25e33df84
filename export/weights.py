"""Weights as ONNX external data, written once for all graphs that use them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["WeightFile", "store_weights"]

_INLINE_BYTES = 1024
_PAGE = 4096
_LINE = 64


@dataclass(frozen=True)
class _Place:
    offset: int
    length: int


class WeightFile:
    """One `.weights` file: tensors at aligned offsets, equal contents stored once.

    Large tensors start on a page, so that readers can map them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("xb")
        self._places: dict[bytes, _Place] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, array: npt.NDArray[np.generic]) -> _Place:
        """Write `array` (little-endian, row-major) unless its bytes are already there."""
        data = np.ascontiguousarray(array).tobytes()
        digest = hashlib.sha256(data).digest()
        if digest not in self._places:
            align = _PAGE if len(data) >= _PAGE else _LINE
            position = self._file.tell()
            self._file.write(bytes(-position % align))
            self._places[digest] = _Place(self._file.tell(), len(data))
            self._file.write(data)
        return self._places[digest]


def store_weights(model: ir.Model, file: WeightFile) -> None:
    """Move a graph's weights to `file`, each in the narrowest float type that loses nothing.

    Needs: initializers in memory. Leaves: small initializers inline; large ones external,
    followed by a Cast to float32 where float16 or bfloat16 holds them exactly. Runtimes fold
    those casts when they load the graph.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        assert tensor is not None, f"initializer {value.name} has no value"
        if tensor.nbytes < _INLINE_BYTES:
            continue
        array = tensor.numpy()
        narrow = _narrowest(array)
        place = file.add(narrow)
        stored = ir.ExternalTensor(
            location=file.path.name,
            offset=place.offset,
            length=place.length,
            dtype=ir.DataType.from_numpy(narrow.dtype),
            shape=ir.Shape(narrow.shape),
            name=value.name or "",
            base_dir=str(file.path.parent),
        )
        if narrow.dtype == array.dtype:
            value.const_value = stored
            continue
        _insert_cast(graph, value, stored)


def _insert_cast(graph: ir.Graph, value: ir.Value, stored: ir.ExternalTensor) -> None:
    name = value.name or ""
    source = ir.Value(
        name=f"{name}.stored",
        shape=ir.Shape(stored.shape),
        type=ir.TensorType(stored.dtype),
        const_value=stored,
    )
    cast = ir.node("Cast", [source], attributes={"to": ir.DataType.FLOAT})
    cast.name = f"{name}.cast"
    result = cast.outputs[0]
    result.name = f"{name}.float32"
    result.shape, result.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    ir.convenience.replace_all_uses_with(value, result)
    del graph.initializers[name]
    graph.initializers[source.name or ""] = source
    graph.insert_before(graph[0], cast)


def _narrowest(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if array.dtype != np.float32:
        return array
    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = array.astype(dtype)
        if np.array_equal(narrow.astype(np.float32), array):
            return narrow
    return array
