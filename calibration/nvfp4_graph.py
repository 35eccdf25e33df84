"""Products with weights in NVFP4, and with activations, in the form that TensorRT takes.

Two DequantizeLinear make a weight: one multiplies the scales of the blocks by the tensor's scale,
one the numbers by the result, each in the type that the product computes in. Activations go
through TensorRT's own operator, which finds the scales of their blocks when it runs. Where a
product is of two such pairs, the library multiplies the numbers of 4 bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rism.calibration.e4m3 import E4M3_MAX, SMALLEST_SCALE
from rism.calibration.inserter import Inserter, WeightsFile
from rism.calibration.kept_layers import kept_layers
from rism.calibration.layers import Layer, find_layers, values
from rism.calibration.nvfp4 import BLOCK, E2M1_MAX, quantised_weight
from rism.calibration.scales import Scales, scaled_layers
from rism.runtime.errors import InputError

E2M1, E4M3 = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
# From this opset on a tensor may have numbers of E2M1.
_OPSET = 23
_DOMAIN = "trt"
# Types of results that are not float32.
_MADE = {"Less": ir.DataType.BOOL, "Shape": ir.DataType.INT64}


def quantise_nvfp4(model: ir.Model, file: Path, scales: Scales | None = None) -> int:
    """Put the weights of a transformer's products in NVFP4, in place.

    Layers that stay in 16 bits are those of FP8 (`kept_layers`), and those whose width is no
    multiple of 16.

    Args:
        model: a transformer graph of a bundle, from opset 23 on.
        file: where the weights are written, as external data of the graph's folder; must not
            exist yet.
        scales: of `rism calibrate`: activations are in NVFP4 as well, and layers without a scale
            stay in 16 bits. None leaves activations as they are.

    Returns:
        How many layers are in NVFP4.

    Raises:
        InputError: a layer is missing, or the graph is older than opset 23.
    """
    opset = model.opset_imports.get("", 0)
    if opset < _OPSET:
        raise InputError(
            f"the graph is of opset {opset}, expected {_OPSET} or later for NVFP4: export again"
        )
    inserter = _Nvfp4(model.graph)
    chosen = _chosen(model, scales)
    with file.open("xb") as handle:
        stored = WeightsFile(handle, file)
        for layer in chosen:
            if scales is not None:
                model.opset_imports[_DOMAIN] = 1
                inserter.activation(layer, scales.layers)
            inserter.weight(layer, stored)
    return len(chosen)


def emulate_nvfp4(model: ir.Model, scales: Scales | None = None) -> None:
    """Replace weights by what NVFP4 leaves of them, and activations where there are scales.

    The graph then runs anywhere; products are computed in its own type.
    """
    inserter = _Emulation(model.graph)
    for layer in _chosen(model, scales):
        if scales is not None:
            inserter.activation(layer, scales.layers)
        weight = values(layer.weight)
        rounded = quantised_weight(weight, _axis(layer)).values(weight.dtype)
        layer.weight.const_value = ir.Tensor(rounded, dtype=layer.weight.dtype)


def _chosen(model: ir.Model, scales: Scales | None) -> list[Layer]:
    if scales is None:
        found = find_layers(model)
        kept = kept_layers(layer.name for layer in found)
        layers = [layer for layer in found if layer.name not in kept]
    else:
        layers = scaled_layers(model, scales)
    return [layer for layer in layers if values(layer.weight).shape[_axis(layer)] % BLOCK == 0]


def _axis(layer: Layer) -> int:
    """Return the axis of a weight along which the product sums."""
    return 1 - layer.channel_axis


class _Activations(Inserter, ABC):
    """Rounds the inputs of products; several products of one tensor share what rounds it."""

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__(graph)
        self._done: dict[tuple[ir.Value, float], ir.Value] = {}

    def activation(self, layer: Layer, scales: Mapping[str, float]) -> None:
        """Round a layer's input in each run, with the tensor's scale from FP8's."""
        scale = scales[layer.name] / E2M1_MAX  # FP8's is max|x| / 448
        key = layer.activation, scale
        if key not in self._done:
            self._done[key] = self._rounded(layer, scale)
        layer.node.replace_input_with(0, self._done[key])

    @abstractmethod
    def _rounded(self, layer: Layer, scale: float) -> ir.Value:
        """Return a layer's input as NVFP4 with a tensor's scale leaves it."""


class _Emulation(_Activations):
    """Rounds to NVFP4 by arithmetic in float32."""

    def _rounded(self, layer: Layer, scale: float) -> ir.Value:
        node, source, name = layer.node, layer.activation, f"{layer.name}.input"
        assert source.dtype is not None

        def add(op_type: str, *inputs: ir.Value | float, **attributes: Any) -> ir.Value:
            made = f"{name}.{len(self.graph)}"
            given = [
                each if isinstance(each, ir.Value) else self.constant(f"{made}.{at}", each)
                for at, each in enumerate(inputs)
            ]
            dtype = ir.DataType(attributes.get("to", _MADE.get(op_type, ir.DataType.FLOAT)))
            return self.add(node, op_type, given, made, dtype, None, attributes)

        size = ir.tensor(np.array([-1, BLOCK]), name=f"{name}.block")
        blocks = add("Reshape", add("Cast", source, to=ir.DataType.FLOAT), self.register(size))
        axis = self.register(ir.tensor(np.array([-1]), name=f"{name}.axis"))
        largest = add("ReduceMax", add("Abs", blocks), axis)
        wanted = add("Min", add("Div", largest, scale * E2M1_MAX), E4M3_MAX)
        found = add("Cast", add("Cast", wanted, to=E4M3), to=ir.DataType.FLOAT)
        wide = add("Mul", found, scale)
        # A block with the scale 0 has numbers of any size, which are multiplied by 0.
        divided = add("Div", blocks, add("Max", wide, SMALLEST_SCALE))
        cut = add("Max", add("Min", divided, E2M1_MAX), -E2M1_MAX)
        size_of = add("Abs", cut)
        # E2M1 counts in halves to 2, in ones to 4 and in twos to 6; `Round` takes even ones, too.
        coarse = add("Where", add("Less", size_of, 4.0), 1.0, 2.0)
        step = add("Where", add("Less", size_of, 2.0), 0.5, coarse)
        rounded = add("Mul", add("Mul", add("Round", add("Div", cut, step)), step), wide)
        return add("Cast", add("Reshape", rounded, add("Shape", source)), to=source.dtype)


class _Nvfp4(_Activations):
    """Adds what an engine turns into products of NVFP4."""

    def _rounded(self, layer: Layer, scale: float) -> ir.Value:
        node, source, name = layer.node, layer.activation, f"{layer.name}.input"
        own = self.constant(f"{name}_tensor_scale", scale)
        quantise = ir.node(
            "TRT_FP4DynamicQuantize",
            [source, own],
            domain=_DOMAIN,
            attributes={"axis": -1, "block_size": BLOCK, "scale_type": E4M3},
            num_outputs=2,
            name=f"{name}_quantise",
        )
        numbers = self.insert(node, quantise, f"{name}_e2m1", E2M1, source.shape)
        blocks = quantise.outputs[1]
        blocks.name, blocks.dtype = f"{name}_block_scales", E4M3
        return self._values(node, numbers, blocks, own, -1, name, layer.factor.dtype)

    def weight(self, layer: Layer, file: WeightsFile) -> None:
        """Replace a layer's weight by one in NVFP4."""
        name, factor = f"{layer.name}.weight", layer.factor
        weight = quantised_weight(values(layer.weight), _axis(layer))
        shape, dtype = weight.numbers.shape, factor.dtype
        numbers = self.register(file.add(f"{name}.e2m1", E2M1, shape, weight.packed()))
        blocks = file.add(f"{name}.block_scales", E4M3, weight.scales.shape, weight.scales)
        own = self.constant(f"{name}_tensor_scale", weight.tensor_scale)
        made = self._values(
            layer.node, numbers, self.register(blocks), own, weight.axis, name, dtype
        )
        layer.node.replace_input_with(1, made)
        self.forget(factor, layer.weight)

    def _values(
        self,
        before: ir.Node,
        numbers: ir.Value,
        blocks: ir.Value,
        own: ir.Value,
        axis: int,
        name: str,
        dtype: ir.DataType | None,
    ) -> ir.Value:
        """Return the values of numbers, in the type that a product computes in."""
        assert dtype is not None
        operator, typed = "DequantizeLinear", {"output_dtype": dtype}
        both = f"{name}_scales"
        scales = self.add(before, operator, [blocks, own], both, dtype, blocks.shape, typed)
        blocked = {"axis": axis, "block_size": BLOCK}
        made = f"{name}_rounded"
        return self.add(before, operator, [numbers, scales], made, dtype, numbers.shape, blocked)
