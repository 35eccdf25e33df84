"""Weights that an engine takes as inputs: where in the bundle they lie, and on the device.

A plan of this kind holds kernels and no weights. The bundle's own weights are copied to the
device once, whatever number of plans (capture modes, fixed sizes) is bound to them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from weakref import WeakValueDictionary

import numpy as np

from rism.runtime.bundle import Bundle
from rism.runtime.checked_json import Node
from rism.runtime.device import Device, DeviceArray
from rism.runtime.errors import BundleError, one_line

__all__ = ["BoundWeight", "read_bound_weights", "upload"]

_BYTES: Mapping[str, int] = MappingProxyType(
    {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int64": 8, "int32": 4}
)
_MAX_JSON_BYTES = 2**24
_MAX_WEIGHTS = 2**16


@dataclass(frozen=True)
class BoundWeight:
    """One weight: its file in the bundle, offset and length in bytes, type and shape."""

    file: str
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


class OnDevice:
    """A weight on a device, shared for as long as somebody holds it."""

    def __init__(self, array: DeviceArray) -> None:
        """Keep the array: of bytes, since NumPy has no bfloat16."""
        self.array = array


# (bundle's digest, file, offset, length, device) to what is there already.
_SHARED: WeakValueDictionary[tuple[str, str, int, int, int], OnDevice] = WeakValueDictionary()


def read_bound_weights(bundle: Bundle, name: str) -> dict[str, BoundWeight]:
    """Read which weights a plan takes.

    Args:
        bundle: an open bundle.
        name: the JSON file beside the plan, which the manifest lists.

    Returns:
        Weights by name of the plan's input.

    Raises:
        BundleError: it is not such a file, or names what the bundle has not.
    """
    file = bundle.file(name)
    if bundle.manifest.files[name].size > _MAX_JSON_BYTES:
        raise BundleError(f"{name} is larger than {_MAX_JSON_BYTES} bytes: build the engine again")
    try:
        top = Node(json.loads(file.read_bytes()), name)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{name} cannot be read ({one_line(error, limit=80)}): build the engine again"
        ) from None
    names = top.names()
    if len(names) > _MAX_WEIGHTS:
        raise BundleError(f"{name} lists more than {_MAX_WEIGHTS} weights: build the engine again")
    return {each: _weight(top.node(each), bundle) for each in names}


def _weight(node: Node, bundle: Bundle) -> BoundWeight:
    file = node.file_name("file")
    if file not in bundle.manifest.files:
        node.refuse("file", "a file that manifest.json lists")
    size = bundle.manifest.files[file].size
    dtype = node.choice("dtype", tuple(_BYTES))
    offset, length = node.integer("offset", 0, size), node.integer("length", 1, size)
    shape = tuple(
        side
        for side in node.items("shape", most=8)
        if isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= 2**31
    )
    whole = len(shape) == len(node.items("shape", most=8))
    if not whole or math.prod(shape) * _BYTES[dtype] != length:
        node.refuse("shape", f"sizes that make {length} bytes of {dtype}")
    if offset + length > size:
        node.refuse("offset", f"{length} bytes inside a file of {size}")
    return BoundWeight(file, offset, length, dtype, shape)


def upload(
    bundle: Bundle, weights: Mapping[str, BoundWeight], device: Device
) -> dict[str, OnDevice]:
    """Copy weights to a device, but for those that are there.

    Args:
        bundle: that they are of; its files are read where they lie.
        weights: by name of the plan's input.
        device: the GPU.

    Returns:
        What is on the device, by name; it stays there as long as somebody holds it.
    """
    found = {}
    for name, weight in weights.items():
        key = (bundle.digest, weight.file, weight.offset, weight.length, device.number)
        there = _SHARED.get(key)
        if there is None:
            array = device.empty((weight.length,), "uint8")
            device.copy(
                np.memmap(bundle.file(weight.file), np.uint8, "r", weight.offset, weight.length),
                into=array,
            )
            there = _SHARED[key] = OnDevice(array)
        found[name] = there
    return found
