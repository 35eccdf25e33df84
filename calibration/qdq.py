"""Inserts QuantizeLinear and DequantizeLinear before the products of an exported graph.

Scales are float32 in every graph. An engine multiplies a product by its channels' scales
afterwards; before that it holds y / scale, which in float16 would exceed the largest number.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from rism.calibration.e4m3 import channel_scales, quantised_weight
from rism.calibration.inserter import Inserter, WeightsFile
from rism.calibration.layers import Layer, values
from rism.calibration.scales import Scales, scaled_layers
from rism.runtime.errors import InputError

FP8 = ir.DataType.FLOAT8E4M3FN
# From this opset DequantizeLinear can give another type than its scale's.
_TYPED_OPSET = 23
# From this opset QuantizeLinear takes its output type as an attribute.
_ATTRIBUTE_OPSET = 21
_FIRST_OPSET = 19


def quantise(
    model: ir.Model,
    scales: Scales,
    *,
    weights: Literal["qdq", "stored"] = "qdq",
    file: Path | None = None,
    casts: bool = False,
) -> list[str]:
    """Quantise the layers that have a scale, in place.

    Activations have one scale per tensor, weights one per output channel. DequantizeLinear
    returns the type that the product took before, so the graph's compute type does not change.

    Args:
        model: a transformer graph of a bundle, from opset 19 on.
        scales: of that bundle (`load_scales`).
        weights: "qdq" keeps the bundle's own initializers and quantises them in the graph,
            which a builder does once; "stored" replaces them by FP8 ones.
        file: where "stored" weights are written, as external data of the graph's folder; must
            not exist yet.
        casts: leave the types of QuantizeLinear and DequantizeLinear float32 and cast around
            them, as opsets before 23 need it and onnxruntime's kernels for the CPU do.

    Returns:
        Names of the layers that were quantised.

    Raises:
        InputError: a layer is missing, or the graph is older than opset 19.
    """
    opset = model.opset_imports.get("", 0)
    if opset < _FIRST_OPSET:
        raise InputError(
            f"the graph is of opset {opset}, expected {_FIRST_OPSET} or later for FP8: export again"
        )
    chosen = scaled_layers(model, scales)
    inserter = _Pairs(model.graph, opset, casts=casts or opset < _TYPED_OPSET)
    if weights == "qdq":
        for layer in chosen:
            inserter.activation(layer, scales.layers)
            inserter.weight(layer)
        return [layer.name for layer in chosen]
    if file is None:
        raise InputError("stored FP8 weights need a file to be written to")
    with file.open("xb") as handle:
        for layer in chosen:
            inserter.activation(layer, scales.layers)
            inserter.stored_weight(layer, WeightsFile(handle, file))
    return [layer.name for layer in chosen]


class _Pairs(Inserter):
    """Adds nodes before products; several products of one tensor share its pair."""

    def __init__(self, graph: ir.Graph, opset: int, *, casts: bool) -> None:
        super().__init__(graph)
        self.casts = casts
        self.attribute = opset >= _ATTRIBUTE_OPSET
        self._done: dict[tuple[ir.Value, float], ir.Value] = {}

    def activation(self, layer: Layer, scales: Mapping[str, float]) -> None:
        """Quantise a layer's input."""
        scale, source = scales[layer.name], layer.activation
        rounded = self._done.get((source, scale))
        if rounded is None:
            name = f"{layer.name}.input"
            constant = self.constant(f"{name}_scale", scale)
            rounded = self._pair(layer.node, source, constant, None, name)
            self._done[source, scale] = rounded
        layer.node.replace_input_with(0, rounded)

    def weight(self, layer: Layer) -> None:
        """Quantise a layer's stored weight in the graph."""
        name, axis = f"{layer.name}.weight", layer.channel_axis
        scale = self.constant(f"{name}_scale", channel_scales(values(layer.weight), axis))
        rounded = self._pair(layer.node, layer.factor, scale, axis, name)
        layer.node.replace_input_with(1, rounded)

    def stored_weight(self, layer: Layer, file: WeightsFile) -> None:
        """Replace a layer's weight by one that is stored in FP8."""
        name, axis, factor = f"{layer.name}.weight", layer.channel_axis, layer.factor
        scale = channel_scales(values(layer.weight), axis)
        weight = quantised_weight(values(layer.weight), scale, axis)
        tensor = file.add(f"{layer.weight.name}.e4m3", FP8, weight.shape, weight)
        stored, constant = self.register(tensor), self.constant(f"{name}_scale", scale)
        back = self._dequantise(layer.node, stored, constant, axis, factor.dtype, name)
        layer.node.replace_input_with(1, back)
        self.forget(factor, layer.weight)

    def _pair(
        self, before: ir.Node, source: ir.Value, scale: ir.Value, axis: int | None, name: str
    ) -> ir.Value:
        narrow = source
        if self.casts and source.dtype != ir.DataType.FLOAT:
            narrow = self._cast(before, source, ir.DataType.FLOAT, f"{name}_float")
        inputs, attributes = [narrow, scale], _axis(axis)
        if self.attribute:
            attributes["output_dtype"] = FP8
        else:
            inputs.append(self._zeros(scale))
        node = ir.node("QuantizeLinear", inputs, attributes=attributes, name=f"{name}_quantise")
        rounded = self.insert(before, node, f"{name}_e4m3", FP8, source.shape)
        return self._dequantise(before, rounded, scale, axis, source.dtype, name)

    def _dequantise(
        self,
        before: ir.Node,
        source: ir.Value,
        scale: ir.Value,
        axis: int | None,
        dtype: ir.DataType | None,
        name: str,
    ) -> ir.Value:
        wanted, attributes = dtype or ir.DataType.FLOAT, _axis(axis)
        given = ir.DataType.FLOAT if self.casts else wanted
        if given != ir.DataType.FLOAT:
            attributes["output_dtype"] = given
        node = ir.node(
            "DequantizeLinear", [source, scale], attributes=attributes, name=f"{name}_dequantise"
        )
        back = self.insert(before, node, f"{name}_rounded", given, source.shape)
        return back if given == wanted else self._cast(before, back, wanted, f"{name}_narrow")

    def _cast(self, before: ir.Node, source: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        return self.add(before, "Cast", [source], name, to, source.shape, {"to": to})

    def _zeros(self, scale: ir.Value) -> ir.Value:
        """Return zero points of a scale's shape, one tensor for each shape: they set the type."""
        assert scale.shape is not None
        shape = tuple(scale.shape.numpy())
        name = "e4m3_zero" + "".join(f"_{size}" for size in shape)
        if name not in self.graph.initializers:
            self.register(ir.Tensor(np.zeros(shape, FP8.numpy()), dtype=FP8, name=name))
        return self.graph.initializers[name]


def _axis(axis: int | None) -> dict[str, int]:
    return {} if axis is None else {"axis": axis}
