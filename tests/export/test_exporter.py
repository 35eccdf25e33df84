"""The exported bundle: parity, dynamic sizes, what is in the graphs and what is not."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Event

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from diffusers import Flux2Transformer2DModel

from rism.calibration.graph_blocks import split_at_blocks
from rism.calibration.layers import find_layers, fingerprint
from rism.calibration.open_graph import open_transformer
from rism.export import ExportReport, ParityError, export_bundle, exporter
from rism.export.checkpoint.locate import content_digest
from rism.export.families.find import find_checkpoint
from rism.export.families.flux2.dit import Flux2SingleStep
from rism.export.families.flux2.klein import open_klein
from rism.export.families.flux2.reference import reference_capture
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.parity import gate
from rism.export.parity.gate import run_graph
from rism.export.precision import PRECISIONS
from rism.export.spec import ModelSpec
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.errors import OutputError
from rism.runtime.method import equations
from tests.calibration.conftest import scales_of
from tests.export.small import feeds
from tests.paths import ROOT

BLOCKS = 5
GRIDS = [(6, 6), (4, 9), (11, 3)]


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> ModelSpec:
    return open_klein(find_checkpoint(str(checkpoint))).spec


@pytest.fixture(scope="module")
def transformer(checkpoint: Path) -> Flux2Transformer2DModel:
    """The model as diffusers loads it: nothing of the exporter's."""
    return Flux2Transformer2DModel.from_pretrained(checkpoint / "transformer").eval()


@pytest.mark.parametrize("grid_hw", GRIDS)
def test_every_mode_agrees_with_the_reference(
    exported: ExportReport,
    spec: ModelSpec,
    transformer: Flux2Transformer2DModel,
    grid_hw: tuple[int, int],
) -> None:
    given = feeds(spec, grid_hw)
    inputs = {name: torch.from_numpy(value) for name, value in given.items()}
    inputs.pop("positions")
    reference = reference_capture(
        transformer, grid_hw=grid_hw, feature_block=spec.feature_block, timestep=1.0, **inputs
    )
    vectors = reference.attention_vectors.numpy()
    propagated = equations.propagate(reference.transition_matrices.numpy(), vectors)
    features = reference.features["mmsa"].numpy()
    tokens = {"token_attention": reference.token_attention.sum(1).numpy()}
    shared = {"attention_vectors": vectors, "features": features, **tokens}
    matrices = {"transition_matrices": reference.transition_matrices.numpy()}
    for mode, wanted in (
        ("vectors", {**shared, "propagated_vectors": propagated}),
        ("matrices", {**shared, **matrices}),
        ("scores", tokens),
    ):
        tau = {"tau": np.float32([0.8])} if mode == "scores" else {}
        got = run_graph(exported.path / f"transformer.{mode}.onnx", given | tau)
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=f"{mode} {name}")
    for item in range(2):
        answer = equations.segment_tokens(vectors[item], propagated[item], features[item], tau=0.8)
        np.testing.assert_allclose(got["scores"][item], answer.scores, atol=1e-3)
        assert answer.separability == pytest.approx(float(got["separability"][item]), rel=1e-2)


def all_shapes(path: Path, given: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shapes of every tensor that a run of the graph makes."""
    model = ir.load(path)
    made = [value for node in model.graph for value in node.outputs if value.dtype is not None]
    model.graph.outputs.extend(value for value in made if not value.is_graph_output())
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    probed = path.with_name("probed.onnx")
    try:
        ir.save(model, probed)
        session = ort.InferenceSession(probed, options, providers=["CPUExecutionProvider"])
        arrays = session.run(None, given)
    finally:
        probed.unlink()
    names = [value.name for value in session.get_outputs()]
    return {name: np.shape(array) for name, array in zip(names, arrays, strict=True)}


def test_cpus_have_a_form_of_each_graph_on_the_same_weights(exported: ExportReport) -> None:
    def operators(file: str) -> Counter[str]:
        return Counter(node.op_type for node in ir.load(exported.path / file).graph)

    graphs = Bundle.open(exported.path).manifest.graphs
    assert all(graph.cpu == graph.file.replace(".onnx", ".cpu.onnx") for graph in graphs.values())
    norms = operators("text_encoder.onnx")["Sqrt"]
    found = operators("text_encoder.cpu.onnx")
    assert found["RMSNormalization"] == norms > 5 and found["Sqrt"] == 0
    found = operators("vae_encoder.cpu.onnx")
    assert found["BatchNormalization"] == found["InstanceNormalization"] > 5
    assert operators("transformer.vectors.onnx")["Softmax"] == 0
    # One of the clean queries in every block, one of the others in all but the last.
    assert operators("transformer.vectors.cpu.onnx")["Softmax"] == 2 * BLOCKS - 1
    assert len(list(exported.path.glob("*.weights"))) == 3


@pytest.mark.parametrize("mode", ["vectors", "scores"])
def test_no_matrix_over_image_tokens_is_ever_made(
    exported: ExportReport, spec: ModelSpec, mode: str
) -> None:
    tokens = 7 * 11
    whole = spec.prompt.max_length + 2 * tokens
    given = feeds(spec, (7, 11))
    if mode == "scores":
        given["tau"] = np.float32([0.8])
    shapes = all_shapes(exported.path / f"transformer.{mode}.onnx", given)
    assert len(shapes) > 100
    large = {n: s for n, s in shapes.items() if sum(size in (tokens, whole) for size in s) > 1}
    assert not large


def test_what_the_mask_does_not_need_is_not_in_the_graph(
    exported: ExportReport, spec: ModelSpec
) -> None:
    graph = ir.load(exported.path / "transformer.vectors.onnx").graph
    names = " ".join(graph.initializers)
    for absent in ("time_guidance_embed", "modulation.linear", "norm_out", "proj_out"):
        assert absent not in names
    inner = spec.feature_dim
    # Each single-stream block but the last has an MLP of 3 x 2 widths beside q, k and v.
    fused = [
        value
        for value in graph.initializers.values()
        if value.shape is not None and sorted(value.shape.numpy()) == [inner, 9 * inner]
    ]
    assert len(fused) == spec.single_blocks - 1


def test_weights_are_stored_once_for_all_modes(exported: ExportReport) -> None:
    places = {}
    for mode in ("vectors", "matrices", "scores"):
        graph = ir.load(exported.path / f"transformer.{mode}.onnx").graph
        places[mode] = {
            (value.const_value.offset, value.const_value.length)
            for name, value in graph.initializers.items()
            if name.startswith("dit.")
            and isinstance(value.const_value, ir.ExternalTensor)
            and value.const_value.length >= 4096
        }
    assert places["vectors"] == places["matrices"] == places["scores"]
    assert len(places["vectors"]) > 20
    assert all(offset % 4096 == 0 for offset, _ in places["vectors"])


def test_graphs_say_nothing_of_where_they_were_made(exported: ExportReport) -> None:
    for path in exported.path.glob("*.onnx"):
        content = path.read_bytes()
        assert b".py" not in content
        assert str(Path(exporter.__file__).parent).encode() not in content


@pytest.mark.parametrize("site", ["adaln", "block"])
def test_the_sites_of_table_3(
    checkpoint: Path, transformer: Flux2Transformer2DModel, site: str
) -> None:
    model, fp32 = open_klein(find_checkpoint(str(checkpoint))), PRECISIONS["fp32"]
    dit, options = model.transformer(fp32).fill(), CaptureOptions("vectors", feature_site=site)
    given = {k: torch.from_numpy(v) for k, v in feeds(model.spec, (4, 5)).items()}
    with torch.no_grad():
        found = CaptureGraph(dit, model.spec, options, fp32)(**given)[2]
    given.pop("positions")
    block = model.spec.feature_block
    wanted = reference_capture(
        transformer, grid_hw=(4, 5), feature_block=block, timestep=1.0, **given
    ).features[site]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_the_runtime_segments_with_it(exported: ExportReport) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    masks = []
    for capture in ("vectors", "matrices", "scores"):
        segmenter = Segmenter.from_bundle(exported.path, provider="cpu", capture=capture)
        masks.append(segmenter.segment(image, "the red car", paper=True).mask)
    assert masks[0].shape == (90, 130)
    assert (masks[0] != masks[1]).mean() < 1e-3
    assert (masks[0] != masks[2]).mean() < 1e-3


def test_a_graph_that_differs_leaves_no_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Flux2SingleStep.__init__

    def bent(self: Flux2SingleStep, *arguments: object) -> None:
        honest(self, *arguments)
        self.rotary.frequencies.mul_(1.01)

    monkeypatch.setattr(Flux2SingleStep, "__init__", bent)
    with pytest.raises(ParityError, match=r"transformer\.vectors: output .* differs .* no bundle"):
        export_bundle(str(checkpoint), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_take_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="not empty"):
        export_bundle(str(checkpoint), full)
    assert (full / "mine.txt").read_text() == "precious"
    with pytest.raises(OutputError, match="not a folder"):
        export_bundle(str(checkpoint), full / "mine.txt")
    with pytest.raises(OutputError, match="/proc/nowhere/b cannot be written"):
        export_bundle(str(checkpoint), Path("/proc/nowhere/b"))


def test_the_revision_names_the_weights(checkpoint: Path, exported: ExportReport) -> None:
    revision = Bundle.open(exported.path).manifest.model.revision
    assert revision == content_digest([checkpoint], Event())


def test_calibration_finds_the_layers_by_their_names(exported: ExportReport) -> None:
    bundle = Bundle.open(exported.path)
    model = open_transformer(bundle).model
    scales = scales_of(model)
    assert len(split_at_blocks(model)) > 4
    double = [name for name in scales.layers if name.startswith("transformer_blocks.")]
    single = [name for name in scales.layers if name.startswith("single_transformer_blocks.")]
    assert len(double) == 2 * 12 and len(double) + len(single) == len(scales.layers)
    assert {name.split(".", 2)[2] for name in single} == {"attn.to_qkv_mlp_proj", "attn.to_out"}
    embedders = dict.fromkeys(("x_embedder", "context_embedder"), "embedder")
    assert scales.kept == {**embedders, "last.to_q": "probe", "last.to_k": "probe"}
    for capture in bundle.manifest.captures:
        layers = find_layers(open_transformer(bundle, capture=capture).model)
        assert fingerprint(layers) == scales.fingerprint, capture


def test_free_dimensions_have_the_names_of_the_bundle_page(exported: ExportReport) -> None:
    manifest = Bundle.open(exported.path).manifest
    sizes = {
        size
        for graph in manifest.graphs.values()
        for tensor in [*graph.inputs.values(), *graph.outputs.values()]
        for size in tensor.shape
        if isinstance(size, str)
    }
    assert sizes == {"batch", "tokens", "height", "width"}


def test_an_output_that_nothing_was_compared_with_does_not_pass() -> None:
    checks: dict[str, gate.Check] = {}
    gate.worst(checks, "", "features", 1e-7)
    gate.gate("transformer.vectors", checks)
    gate.worst(checks, "", "features", float("nan"))
    gate.worst(checks, "", "features", 1e-7)
    with pytest.raises(ParityError, match=r"'features' differs .* by inf"):
        gate.gate("transformer.vectors", checks)


def test_every_output_is_in_the_report(exported: ExportReport) -> None:
    for name, graph in Bundle.open(exported.path).manifest.graphs.items():
        assert set(graph.outputs) <= set(exported.parity[name])
        assert all(check.passed for check in exported.parity[name].values())


@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rism", "export", "--model", checkpoint, "-o", tmp_path / "b"]
    run = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    limit = time.monotonic() + 900
    while not list(tmp_path.glob(".b.*/*.onnx")) and time.monotonic() < limit:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, notes = run.communicate(timeout=900)
    assert run.returncode == 130
    assert "Traceback" not in notes
    assert list(tmp_path.iterdir()) == []
