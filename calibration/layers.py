"""The linear layers of a transformer graph."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rism.runtime.errors import BundleError, one_line

_PREFIX, _SUFFIX = "dit.", ".weight"
_DIGESTED_BYTES = 4096


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer: a product with a stored weight.

    Attributes:
        name: of the module, without the graph's prefix: "transformer_blocks.0.attn.to_q".
        node: the `MatMul`, or a `Gemm`.
        weight: the initializer, in the type that it is stored in.
        channel_axis: of the weight's output channels: 1 of (in, out), 0 of (out, in).
    """

    name: str
    node: ir.Node
    weight: ir.Value
    channel_axis: int

    @property
    def activation(self) -> ir.Value:
        """The layer's input, (..., in)."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def factor(self) -> ir.Value:
        """The weight as the product takes it: itself, or cast."""
        value = self.node.inputs[1]
        assert value is not None
        return value


def find_layers(model: ir.Model) -> list[Layer]:
    """List the products with a two-dimensional stored weight, in the order they run.

    Args:
        model: a transformer graph of a bundle, in any precision and capture mode.

    Raises:
        BundleError: two products share a weight: it is no graph of rism's exporter.
    """
    found: dict[str, Layer] = {}
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = node.inputs[1]
        producer = None if weight is None else weight.producer()
        if producer is not None and producer.op_type == "Cast":
            weight = producer.inputs[0]
        if weight is None or not weight.is_initializer() or not _is_matrix(weight):
            continue
        name = (weight.name or "").removeprefix(_PREFIX).removesuffix(_SUFFIX)
        if name in found:
            raise BundleError(
                f"'{one_line(name, limit=80)}' is in two products, expected one: export again"
            )
        turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        found[name] = Layer(name, node, weight, 0 if turned else 1)
    return list(found.values())


def fingerprint(layers: Sequence[Layer]) -> str:
    """Return a SHA-256 that identifies a transformer by its weights.

    Over every layer's name, the types of its product and of its weight, the weight's shape and
    its first and last 4 KiB, in the order of the names: the same for all capture modes of a model
    in one precision, different for another model, a fine-tuned one or another precision.
    """
    digest = hashlib.sha256()
    for layer in sorted(layers, key=lambda layer: layer.name):
        weight = values(layer.weight)
        raw = weight.reshape(-1).view(np.uint8)
        said = f"{layer.name} {layer.activation.dtype} {layer.weight.dtype} {list(weight.shape)}\n"
        digest.update(said.encode())
        digest.update(raw[:_DIGESTED_BYTES].tobytes())
        digest.update(raw[-_DIGESTED_BYTES:].tobytes())
    return digest.hexdigest()


def values(weight: ir.Value) -> npt.NDArray[Any]:
    """Return a stored weight's values.

    A weight in a file is mapped for as long as the array lives; onnx_ir's own mapping would stay
    as long as the graph, and keep every page that was read in memory.
    """
    tensor = weight.const_value
    assert tensor is not None
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    shape = tuple(tensor.shape.numpy())
    return np.memmap(tensor.path, tensor.dtype.numpy(), "r", tensor.offset or 0, shape)


def _is_matrix(weight: ir.Value) -> bool:
    return weight.const_value is not None and len(weight.const_value.shape) == 2
