"""A whole FP8 transformer on the CPU: what it rounds, bit for bit, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from benchmarks.fp8.masks import CALIBRATION_SCENES, scenes
from rism.calibration import calibrate, quantise
from rism.calibration.blockwise_run import LoadedGraph
from rism.calibration.e4m3 import E4M3_MAX
from rism.calibration.layers import Layer, find_layers
from rism.calibration.open_graph import OpenGraph, open_transformer
from rism.calibration.samples import prepare
from rism.calibration.scales import Scales
from rism.runtime.bundle.graph_spec import TensorSpec
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Arrays


@pytest.fixture(scope="module")
def scales(mini_bundle: Bundle) -> Scales:
    return calibrate(mini_bundle, scenes(CALIBRATION_SCENES, 2)).scales


def producer(value: ir.Value | None) -> ir.Node:
    node = None if value is None else value.producer()
    assert node is not None
    return node


def by_torch(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Values after PyTorch's own conversion and back."""
    divided = torch.from_numpy(values) / torch.from_numpy(scale)
    rounded = divided.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    made: np.ndarray = (rounded.float() * torch.from_numpy(scale)).numpy()
    return made


def inner_values(graph: OpenGraph, values: dict[str, ir.Value], feeds: Arrays) -> Arrays:
    """Run a graph, and return values from inside it."""
    outputs = dict(graph.spec.outputs)
    for name, value in values.items():
        if value not in graph.model.graph.outputs:
            graph.model.graph.outputs.append(value)
        outputs[name] = TensorSpec(value.name or "", "float32", ())
    return LoadedGraph(replace(graph, spec=replace(graph.spec, outputs=outputs))).run(feeds)


def test_every_number_that_is_rounded_is_rounded_as_pytorch_does(
    mini_bundle: Bundle, scales: Scales, tmp_path: Path
) -> None:
    """All inputs of all quantised products of the built-in transformer, on a picture."""
    feeds = prepare(mini_bundle, scenes(0, 1), tmp_path).feeds(0)
    graph = open_transformer(mini_bundle)
    quantise(graph.model, scales, casts=True)
    products = {
        node.name or node.outputs[0].name or "": node
        for node in graph.model.graph
        if node.op_type == "MatMul" and all(v is not None and _rounded(v) for v in node.inputs)
    }
    assert len(products) == len(scales.layers) == 34
    values: dict[str, ir.Value] = {}
    for name, node in products.items():
        for at, kind in enumerate(("activation", "weight")):
            after = node.inputs[at]
            quantiser = producer(producer(after).inputs[0])
            assert quantiser.op_type == "QuantizeLinear"
            before, scale = quantiser.inputs[:2]
            assert before is not None and scale is not None and after is not None
            values |= {
                f"{name} {kind} before": before,
                f"{name} {kind} scale": scale,
                f"{name} {kind} after": after,
            }
        values[f"{name} product"] = node.outputs[0]
    constants = {n: v for n, v in values.items() if v.is_initializer()}
    made = inner_values(graph, {n: v for n, v in values.items() if n not in constants}, feeds)
    for name, value in constants.items():
        assert value.const_value is not None
        made[name] = np.asarray(value.const_value.numpy(), np.float32)
    saturated = changed = 0
    for name in products:
        for kind in ("activation", "weight"):
            before, after = made[f"{name} {kind} before"], made[f"{name} {kind} after"]
            wanted = by_torch(before, made[f"{name} {kind} scale"])
            assert np.array_equal(after.view(np.uint32), wanted.view(np.uint32)), (name, kind)
            changed += int((before != after).sum())
            saturated += int((np.abs(before) > E4M3_MAX * made[f"{name} {kind} scale"]).sum())
        # Sums are in an order of each library's own: near, not alike.
        product = torch.from_numpy(made[f"{name} activation after"]) @ torch.from_numpy(
            made[f"{name} weight after"]
        )
        wide = np.abs(product.numpy()).max()
        assert np.abs(product.numpy() - made[f"{name} product"]).max() <= 1e-5 * wide
    assert changed > 10**6
    assert saturated > 0, "another picture than those of the calibration"


def _rounded(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def test_the_probe_and_the_embedders_keep_their_numbers(
    mini_bundle: Bundle, scales: Scales
) -> None:
    plain = {layer.name: layer for layer in find_layers(open_transformer(mini_bundle).model)}
    model = open_transformer(mini_bundle).model
    quantised = quantise(model, scales, casts=True)
    after = {layer.name: layer for layer in find_layers(model)}
    assert set(after) == set(plain) - set(quantised), "only what is left is a stored product"
    assert set(after) == {"x_embedder", "context_embedder", "last.to_q", "last.to_k"}
    for name, layer in after.items():
        assert not _rounded(layer.activation) and not _rounded(layer.factor), name
        assert _bits(layer) == _bits(plain[name])
    # Nothing between the last quantised product and the capture is quantised either.
    for capture in mini_bundle.manifest.captures:
        model = open_transformer(mini_bundle, capture=capture).model
        quantise(model, scales, casts=True)
        pairs = [node for node in model.graph if node.op_type == "DequantizeLinear"]
        users = {use.node.op_type for node in pairs for use in node.outputs[0].uses()}
        assert users == {"MatMul"}


def _bits(layer: Layer) -> bytes:
    assert layer.weight.const_value is not None
    return layer.weight.const_value.tobytes()
