"""What calibration finds in an exported bundle: its layers by name, and its blocks."""

from pathlib import Path

import numpy as np
import pytest

from rism.calibration import Scales, quantise
from rism.calibration.blockwise_run import LoadedGraph, StreamedGraph
from rism.calibration.graph_blocks import split_at_blocks
from rism.calibration.layers import find_layers, fingerprint, kept_layers
from rism.calibration.open_graph import open_transformer
from rism.export import ExportReport
from rism.export.families.find import find_checkpoint
from rism.export.families.flux2.klein import open_klein
from rism.runtime.bundle.reader import Bundle
from tests.export.small import feeds


@pytest.fixture(scope="module")
def bundle(exported: ExportReport) -> Bundle:
    return Bundle.open(exported.path)


@pytest.fixture(scope="module")
def scales(bundle: Bundle) -> Scales:
    layers = find_layers(open_transformer(bundle).model)
    kept = kept_layers([layer.name for layer in layers])
    own = {layer.name: 0.02 for layer in layers if layer.name not in kept}
    return Scales(fingerprint(layers), "m", "p", "max", 100.0, 1, own, kept)


def test_names_are_those_of_the_model(bundle: Bundle, scales: Scales) -> None:
    double = [name for name in scales.layers if name.startswith("transformer_blocks.")]
    single = [name for name in scales.layers if name.startswith("single_transformer_blocks.")]
    assert len(double) == 2 * 12 and len(double) + len(single) == len(scales.layers)
    assert {name.split(".", 2)[2] for name in single} == {"attn.to_qkv_mlp_proj", "attn.to_out"}
    assert scales.kept == {
        "x_embedder": "embedder",
        "context_embedder": "embedder",
        "last.to_q": "probe",
        "last.to_k": "probe",
    }
    for capture in bundle.manifest.captures:
        layers = find_layers(open_transformer(bundle, capture=capture).model)
        assert fingerprint(layers) == scales.fingerprint, capture


@pytest.mark.parametrize("capture", ["vectors", "scores"])
def test_block_by_block_it_is_the_whole_graph(
    checkpoint: Path, bundle: Bundle, scales: Scales, capture: str
) -> None:
    given = feeds(open_klein(find_checkpoint(str(checkpoint))).spec, (4, 5))
    given["tau"] = np.float32([0.8])
    exact: dict[str, np.ndarray] = {}
    for quantised in (False, True):
        graphs = [open_transformer(bundle, capture=capture) for _ in range(2)]
        if quantised:
            for graph in graphs:
                assert quantise(graph.model, scales, casts=True) == [*scales.layers]
        assert len(split_at_blocks(graphs[0].model)) > 4
        whole, found = LoadedGraph(graphs[0]).run(given), StreamedGraph(graphs[1]).run(given)
        for name, value in whole.items():
            difference = np.abs(found[name] - value).max() / np.abs(value).max()
            # A number that lies between two of E4M3's may be rounded either way.
            assert difference <= (0.02 if quantised else 1e-4), name
        changed = [name for name, value in exact.items() if not np.array_equal(whole[name], value)]
        assert not quantised or changed, "FP8 changes something"
        exact = whole
