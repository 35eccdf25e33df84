"""ONNX graphs as far as they have to be read to be cut: nodes, values, and where weights lie.

The runtime does not depend on the package `onnx`. This reads the few fields of its messages that a
cut needs (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3) and copies all others as they
are. Files may come from a stranger: whatever is not of this form is a `BundleError`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rism.runtime.bundle.file_spec import FileInfo
from rism.runtime.errors import BundleError, one_line

_MAX_BYTES = 2**30
# By the numbers of onnx.proto's TensorProto.DataType; strings and complex numbers are no weights.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8,
}  # fmt: skip
_SIXTEEN_BIT_FLOATS = (10, 16)  # float16, bfloat16
_UINT8 = 2


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """One operator, as its message says it."""

    message: bytes
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class OnnxWeight:
    """One initialiser.

    Attributes:
        message: contains its values, or says where they lie.
        dtype: number of its type.
        nbytes: as stored.
        quantised: whether it is dequantised in the graph.
        looked_up: whether it is a table, of which a run reads some rows.
    """

    message: bytes
    dtype: int
    nbytes: int
    quantised: bool = False
    looked_up: bool = False

    @property
    def is_half(self) -> bool:
        """Whether it is float16 or bfloat16."""
        return self.dtype in _SIXTEEN_BIT_FLOATS

    @property
    def is_bytes(self) -> bool:
        """Whether it is uint8, as packed integers are."""
        return self.dtype == _UINT8


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A graph whose nodes are in an order in which they run.

    Attributes:
        folder: of its file, where the files of its weights are.
        nodes: all of them.
        weights: initialisers by name.
        inputs, outputs: names of its own.
        values: messages that say the type of a value, by name.
        around: the model's other fields, such as operator sets.
    """

    folder: Path
    nodes: tuple[OnnxNode, ...]
    weights: Mapping[str, OnnxWeight]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, bytes]
    around: bytes

    def part(
        self, nodes: Iterable[OnnxNode], inputs: Sequence[str], outputs: Sequence[str]
    ) -> bytes:
        """Return some of the nodes as a model of its own, on the same stored weights.

        Raises:
            BundleError: an input or output has no known type.
        """
        chosen = list(nodes)
        used = {name for node in chosen for name in node.inputs}
        fields = [_field(1, node.message) for node in chosen]
        fields.append(_field(2, b"part"))
        fields += [_field(5, w.message) for name, w in self.weights.items() if name in used]
        for number, names in ((11, inputs), (12, outputs)):
            for name in names:
                if name not in self.values:
                    raise BundleError(
                        f"the type of '{one_line(name, limit=80)}' is missing in the graph: export "
                        "the bundle again, or run it without --memory"
                    )
                fields.append(_field(number, self.values[name]))
        return self.around + _field(7, b"".join(fields))


def read_graph(file: Path, files: Mapping[str, FileInfo]) -> OnnxGraph:
    """Read a graph of a bundle.

    Args:
        file: the ONNX file.
        files: those that the manifest lists; weights lie in them.

    Raises:
        BundleError: it is no such graph, or a weight lies outside of the files.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        return _read(file, files)
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(
            f"'{file.name}' is not a graph that can be read ({one_line(error, limit=120)}): "
            "export the bundle again"
        ) from None


def _read(file: Path, files: Mapping[str, FileInfo]) -> OnnxGraph:
    around, body = bytearray(), b""
    for number, value in _fields(file.read_bytes()):
        if number == 7 and isinstance(value, bytes):
            body += value
        elif number == 25:
            raise ValueError("it has functions")
        else:
            around += _field(number, value)
    nodes: list[OnnxNode] = []
    weights: dict[str, OnnxWeight] = {}
    values: dict[str, bytes] = {}
    ends: dict[int, list[str]] = {11: [], 12: []}
    for number, value in _fields(body):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            name, weight = _weight(value, files)
            weights[name] = weight
        elif number in (11, 12, 13):
            name = _text(value, 1)
            values[name] = value
            if number in ends:
                ends[number].append(name)
        elif number == 15:
            raise ValueError("it has sparse weights")
    for node in nodes:
        first = node.inputs[0] if node.inputs else ""
        if node.operator == "DequantizeLinear" and first in weights:
            weights[first] = replace(weights[first], quantised=True)
        if node.operator == "Gather" and first in weights:
            weights[first] = replace(weights[first], looked_up=True)
    inputs = tuple(name for name in ends[11] if name not in weights)
    return OnnxGraph(
        file.parent, tuple(nodes), weights, inputs, tuple(ends[12]), values, bytes(around)
    )


def _node(message: bytes) -> OnnxNode:
    names: dict[int, list[str]] = {1: [], 2: [], 4: [""]}
    for number, value in _fields(message):
        if number in names and isinstance(value, bytes):
            names[number].append(value.decode())
        elif (
            number == 5
            and isinstance(value, bytes)
            and any(inner in (6, 11) for inner, _ in _fields(value))
        ):
            raise ValueError("a node has a graph inside")
    return OnnxNode(message, names[4][-1], tuple(names[1]), tuple(names[2]))


def _weight(message: bytes, files: Mapping[str, FileInfo]) -> tuple[str, OnnxWeight]:
    name, dtype, sides, place = "", 0, list[int](), dict[str, str]()
    for number, value in _fields(message):
        if number == 1:
            sides += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 8 and isinstance(value, bytes):
            name = value.decode()
        elif number == 13 and isinstance(value, bytes):
            place[_text(value, 1)] = _text(value, 2)
    if dtype not in _BITS or any(side < 0 or side >= 2**40 for side in sides):
        raise ValueError(f"weight '{one_line(name, limit=60)}' has no known type or size")
    nbytes = -(-math.prod(sides) * _BITS[dtype] // 8)
    if place:
        listed = files.get(place.get("location", ""))
        start, length = int(place.get("offset", "0")), int(place.get("length", str(nbytes)))
        if listed is None or start < 0 or length != nbytes or start + length > listed.size:
            raise ValueError(f"weight '{one_line(name, limit=60)}' lies outside the bundle's files")
    return name, OnnxWeight(message, dtype, nbytes)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and value of each field: an integer, or the bytes of anything else."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field {number} is of type {kind}")
        if at + length > len(message):
            raise ValueError("it ends within a field")
        yield number, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError("a number does not end")


def _packed(message: bytes) -> list[int]:
    at, found = 0, []
    while at < len(message):
        value, at = _varint(message, at)
        found.append(value)
    return found


def _text(message: bytes, number: int) -> str:
    found = [value for each, value in _fields(message) if each == number]
    return found[-1].decode() if found and isinstance(found[-1], bytes) else ""


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    return _number(number << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
