"""Graphs cut at their blocks: the same numbers, one block's weights at a time."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from benchmarks.synthetic.step1x_checkpoint import write_original
from benchmarks.synthetic.step1x_tensors import SMALL
from rism.calibration import quantise
from rism.calibration.blockwise_run import LoadedGraph, StreamedGraph
from rism.calibration.e4m3 import E4M3_MAX
from rism.calibration.graph_blocks import split_at_blocks
from rism.calibration.layers import find_layers
from rism.calibration.open_graph import OpenGraph, open_transformer
from rism.export.graph.capture_graph import CaptureOptions
from rism.export.graph.external_weights import WeightFile, store_weights
from rism.export.graph.signatures import trace_transformer
from rism.export.parity.inputs import transformer_feeds
from rism.export.precision import PRECISIONS
from rism.export.spec import OpenModel
from rism.runtime.bundle.graph_spec import GraphSpec, TensorSpec
from rism.runtime.bundle.reader import Bundle
from tests.calibration.conftest import scales_of
from tests.export.families.step1x.parity import random_inputs
from tests.export.families.step1x.small_model import DROP, SETTINGS, open_step1x
from tests.export.triton.client import recorded
from tests.paths import STREET

Arrays = Mapping[str, np.ndarray]
GRAPH = "transformer.vectors.onnx"


def traced(model: OpenModel, folder: Path) -> OpenGraph:
    """A transformer's graph as it is in a bundle, without all the rest."""
    own = PRECISIONS["bf16"]
    part = model.transformer(own)
    with WeightFile(folder / "transformer.weights") as file:
        graph = trace_transformer(part, model.spec, CaptureOptions("vectors"), own, None)
        store_weights(graph, {f"dit.{n}": rule for n, rule in part.rules.items()}, file)
        ir.save(graph, folder / GRAPH)

    def specs(values: Sequence[ir.Value]) -> dict[str, TensorSpec]:
        return {v.name or "": TensorSpec(v.name or "", "float32", ()) for v in values}

    spec = GraphSpec("", specs(graph.graph.inputs), specs(graph.graph.outputs))
    return reopened(OpenGraph(graph, folder, spec))


def reopened(graph: OpenGraph) -> OpenGraph:
    return replace(graph, model=ir.load(graph.folder / GRAPH))


def assert_near(found: Arrays, wanted: Arrays, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.abs(found[name] - value).max() <= tolerance * np.abs(value).max(), name


def blocks_of(model: ir.Model) -> set[str]:
    names = (re.search(r"(\w+_blocks\.\d+)\.", name) for name in model.graph.initializers)
    return {match[1] for match in names if match}


def mini_inputs(bundle: Bundle) -> dict[str, np.ndarray]:
    """What the transformer gets for a picture: on noise alone rounding is told by chance."""
    _, engines, _ = recorded(bundle, STREET, ["the green van"], "vectors")
    fed = engines["transformer"].fed[-1]
    return {name: value for name, value in fed.items() if name != "prompt_mask"}


@pytest.mark.parametrize("fp8", [False, True])
def test_mini_block_by_block(mini_bundle: Bundle, fp8: bool) -> None:
    for capture in ["vectors"] if fp8 else mini_bundle.manifest.captures:
        graphs = [open_transformer(mini_bundle, capture=capture) for _ in range(2)]
        if fp8:
            for graph in graphs:
                quantise(graph.model, scales_of(graph.model), casts=True)
        whole, found = (
            run(graph).run(mini_inputs(mini_bundle))
            for run, graph in zip((LoadedGraph, StreamedGraph), graphs, strict=True)
        )
        # A number that lies between two of E4M3's may be rounded either way.
        assert_near(found, whole, 0.02 if fp8 else 1e-4 if capture == "scores" else 1e-5)


def test_stages_have_a_block_each(mini_bundle: Bundle) -> None:
    stages = split_at_blocks(open_transformer(mini_bundle).model)
    assert [len(blocks_of(stage.model)) for stage in stages] == [0] + [1] * 7
    taken = {name for stage in stages for name in stage.inputs}
    freed = [name for stage in stages for name in stage.done]
    assert sorted(freed) == sorted(taken), "every value is forgotten after its last use, once"


def test_step1x(tmp_path: Path) -> None:
    write_original(tmp_path / "model", replace(SMALL, double=1, single=2), version="1.0")
    settings = SETTINGS | {"drop_tokens": DROP["1.0"], "connector_heads": SMALL.connector_heads}
    (tmp_path / "model/rism.json").write_text(json.dumps(settings))
    model = open_step1x(tmp_path / "model")
    graph = traced(model, tmp_path)
    scales = scales_of(graph.model)
    reasons = {name.split(".")[0]: reason for name, reason in scales.kept.items()}
    assert reasons["connector"] == "text"
    assert reasons["last_attn"] == "probe"
    assert {*scales.kept.values()} == {"text", "embedder", "probe"}
    assert {name.split(".", 2)[2] for name in scales.layers} == {
        *(f"attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
        *(f"attn.add_{part}_proj" for part in "qkv"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
        *("proj_mlp", "proj_out"),
    }
    given = transformer_feeds(random_inputs(model, (4, 6), batch=1))
    whole = LoadedGraph(reopened(graph)).run(given)
    tapped = {layer.activation.name or "": layer for layer in find_layers(graph.model)}
    shown: dict[str, list[int]] = {}
    StreamedGraph(graph).run_all(
        lambda _sample: given,
        2,
        tapped=[name for name, layer in tapped.items() if layer.name in scales.layers],
        on_tap=lambda name, array: shown.setdefault(name, []).append(array.shape[-1]),
        on_result=lambda _sample, found: assert_near(found, whole, 1e-4),
    )
    for name, widths in shown.items():
        weight = tapped[name].weight.const_value
        assert weight is not None
        assert widths == [weight.shape.numpy()[0]] * 2
    quantised = reopened(graph)
    assert quantise(quantised.model, scales, casts=True) == [*scales.layers]
    assert_near(StreamedGraph(quantised).run(given), whole, 0.5)


def test_all_inputs_of_quantised_products_are_rounded_as_pytorch_rounds(
    mini_bundle: Bundle,
) -> None:
    graph = open_transformer(mini_bundle)
    quantise(graph.model, scales_of(graph.model), casts=True)
    pairs = {n.outputs[0]: n for n in graph.model.graph if n.op_type == "DequantizeLinear"}
    products = [n for n in graph.model.graph if n.op_type == "MatMul" and {*n.inputs} <= {*pairs}]
    assert len(products) == 34
    rounded = {after: pair.inputs[0].producer().inputs[:2] for after, pair in pairs.items()}
    inner = {v.name: v for after, before in rounded.items() for v in (after, *before)}
    computed = [value for value in inner.values() if not value.is_initializer()]
    graph.model.graph.outputs.extend(computed)
    specs = {value.name: TensorSpec(value.name, "float32", ()) for value in computed}
    made = dict(
        LoadedGraph(replace(graph, spec=replace(graph.spec, outputs=specs))).run(
            mini_inputs(mini_bundle)
        )
    )
    for name, value in inner.items():
        if value.is_initializer():
            made[name] = np.asarray(value.const_value.numpy(), np.float32)
    saturated = 0
    for after, (before, scale) in rounded.items():
        divided = torch.from_numpy(made[before.name]) / torch.from_numpy(made[scale.name])
        narrow = divided.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        wanted = (narrow.float() * torch.from_numpy(made[scale.name])).numpy()
        assert np.array_equal(made[after.name].view(np.uint32), wanted.view(np.uint32)), after.name
        saturated += int((divided.abs() > E4M3_MAX).sum())
    assert saturated > 0
