"""Weights that a plan takes as inputs: where in the bundle they lie, and their copies on the GPU.

A plan of this kind holds kernels and no weights. The bundle's own weights are copied to the GPU
once and shared by all plans (of capture modes and fixed sizes) that use them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np

from rism.runtime.arrays import Uint8
from rism.runtime.bundle.json_reader import Node, parse_json
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.cuda_device import Device, DeviceArray
from rism.runtime.errors import BundleError, one_line

# By the names that ONNX and ml_dtypes use.
_BYTES = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int64": 8, "int32": 4, "bool": 1
}  # fmt: skip
_MAX_JSON_BYTES = 2**24
_MEND = "build the engine again"


@dataclass(frozen=True)
class BoundWeight:
    """One weight: its file in the bundle, offset and length in bytes, type and shape."""

    file: str
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


class OnDevice:
    """A weight on a device, as bytes, freed when the last plan that uses it is."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array


# By the bundle's digest, file, offset, length and device.
_SHARED: WeakValueDictionary[tuple[str, str, int, int, int], OnDevice] = WeakValueDictionary()


def read_bound_weights(bundle: Bundle, name: str) -> dict[str, BoundWeight]:
    """Read which weights a plan takes, by name of its input, from a JSON file of the bundle.

    Raises:
        BundleError: it is not such a file, or lists weights that the bundle does not have.
    """
    size = bundle.manifest.files[name].size
    if size > _MAX_JSON_BYTES:
        raise BundleError(f"{name} has {size} bytes, expected at most {_MAX_JSON_BYTES}: {_MEND}")
    data = parse_json(bundle.read(name), name, mend=_MEND)
    top = Node(data, document=name, mend=_MEND)
    return {each: _weight(top.node(each), bundle) for each in top.names()}


def _weight(node: Node, bundle: Bundle) -> BoundWeight:
    file = node.listed_file("file", bundle.manifest.files)
    size = bundle.manifest.files[file].size
    dtype = node.choice("dtype", tuple(_BYTES))
    offset, length = node.integer("offset", 0, size), node.integer("length", 1, size)
    shape = node.sizes("shape")
    if math.prod(shape) * _BYTES[dtype] != length:
        node.refuse("shape", f"sizes that make {length} bytes of {dtype}")
    if offset + length > size:
        node.refuse("offset", f"{length} bytes inside a file of {size}")
    return BoundWeight(file, offset, length, dtype, shape)


def upload(
    bundle: Bundle, weights: Mapping[str, BoundWeight], device: Device
) -> dict[str, OnDevice]:
    """Copy weights, by name of the plan's input, to a device, unless they are there already.

    Returns:
        The weights on the device, by name; keep them for as long as the plan may run.

    Raises:
        BundleError: a file is no longer what it was when the bundle was opened.
        MemoryError: the device has too little of it.
    """
    found = {}
    for name, weight in weights.items():
        key = (bundle.digest, weight.file, weight.offset, weight.length, device.number)
        there = _SHARED.get(key)
        if there is None:
            array = device.empty((weight.length,), "uint8")
            device.copy(_mapped(bundle, weight), into=array)
            there = _SHARED[key] = OnDevice(array)
        found[name] = there
    return found


def _mapped(bundle: Bundle, weight: BoundWeight) -> Uint8:
    try:
        return np.memmap(bundle.file(weight.file), np.uint8, "r", weight.offset, weight.length)
    except (OSError, ValueError) as error:  # ValueError: it is shorter than that
        raise BundleError(
            f"bundle '{bundle.path}': '{weight.file}' cannot be read "
            f"({one_line(error, limit=80)}): copy it again"
        ) from None
