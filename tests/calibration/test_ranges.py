"""Calibration of the built-in model: the bars, with fewer scenes than the scenario fp8-masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.scenarios.fp8 import CALIBRATION_SCENES, agreement, scenes, score
from rism.calibration import CalibrationOptions, CalibrationReport, calibrate
from rism.calibration.blockwise_run import LoadedGraph
from rism.calibration.e4m3 import E4M3_MAX
from rism.calibration.emulate import emulated
from rism.calibration.histogram import Histogram
from rism.calibration.layers import find_layers
from rism.calibration.open_graph import OpenGraph, open_transformer
from rism.calibration.ranges import _Run
from rism.calibration.samples import CalibrationSample, prepare
from rism.runtime import BundleError, InputError, Segmenter
from rism.runtime.bundle.graph_spec import TensorSpec
from rism.runtime.bundle.reader import Bundle


@pytest.fixture(scope="module")
def report(mini_bundle: Bundle) -> CalibrationReport:
    return calibrate(mini_bundle, scenes(CALIBRATION_SCENES, 6))


def test_masks_are_kept(mini_bundle: Bundle, report: CalibrationReport) -> None:
    wanted = score(Segmenter.from_bundle(mini_bundle.path, provider="cpu"), 12)
    own = score(emulated(mini_bundle, None), 3)
    for one, other in zip(own.masks, wanted.masks[:3], strict=True):
        assert np.array_equal(one, other), "without scales it is the bundle's own transformer"
    found = agreement(score(emulated(mini_bundle, report.scales), 12), wanted)
    assert found.mean_iou >= 0.95
    assert found.lost_points <= 1.0
    assert found.mean_iou < 1.0, "FP8 changes something"


def test_scales_are_the_largest_values(
    mini_bundle: Bundle, report: CalibrationReport, tmp_path: Path
) -> None:
    """Against a graph that is asked for the activations, without any streaming."""
    graph = open_transformer(mini_bundle)
    layers = {layer.name: layer for layer in find_layers(graph.model)}
    name = "single_transformer_blocks.3.attn.to_out"
    value = layers[name].activation
    graph.model.graph.outputs.append(value)
    asked = {**graph.spec.outputs, "tap": TensorSpec(value.name or "", "float32", ())}
    whole = LoadedGraph(OpenGraph(graph.model, graph.folder, replace(graph.spec, outputs=asked)))
    ready = prepare(mini_bundle, scenes(CALIBRATION_SCENES, 6), tmp_path)
    largest = max(np.abs(whole.run(ready.feeds(at))["tap"]).max() for at in range(6))
    assert report.scales.layers[name] == pytest.approx(largest / E4M3_MAX, rel=1e-4)
    own = {layer.name: layer for layer in report.layers}[name]
    assert own.amax == pytest.approx(largest, rel=1e-4)
    assert own.saturated == 0
    assert 0.01 < (own.activation_error or 0) < 0.1
    assert 0.01 < (own.weight_error or 0) < 0.04


def test_every_layer_is_reported(report: CalibrationReport) -> None:
    names = [layer.name for layer in report.layers]
    assert len(names) == len(set(names)) == len(report.scales.layers) + len(report.scales.kept)
    assert {layer.name for layer in report.layers if layer.kept} == set(report.scales.kept)
    assert report.scales.samples == 6
    assert report.chosen is None


def test_the_mask_rule_takes_the_percentile_whose_masks_agree_best(mini_bundle: Bundle) -> None:
    options = CalibrationOptions(rule="mask", keep=("transformer_blocks.*",))
    found = calibrate(mini_bundle, scenes(CALIBRATION_SCENES, 2), options)
    assert found.scales.rule == "mask"
    assert set(found.scales.kept.values()) == {"embedder", "probe", "asked for"}
    assert found.chosen is not None
    best = max(each.mean_iou for each in found.masks.values())
    assert found.chosen.mean_iou == best > 0.9
    assert found.masks[99.9].mean_iou < best, "what cuts off most is not the best here"
    # Of two that agree equally well the one that cuts off less.
    first = next(p for p, each in found.masks.items() if each.mean_iou == best)
    assert found.scales.percentile == first


def test_a_percentile_cuts_off_what_it_says(mini_bundle: Bundle, report: CalibrationReport) -> None:
    options = CalibrationOptions(rule="percentile", percentile=99.0)
    found = calibrate(mini_bundle, scenes(CALIBRATION_SCENES, 2), options)
    for layer in found.layers:
        if layer.kept is None:
            assert layer.scale is not None and layer.amax is not None
            assert layer.saturated == pytest.approx(0.01, abs=0.004), layer.name
            assert layer.scale < layer.amax / E4M3_MAX


def test_what_cannot_be_asked_for(mini_bundle: Bundle) -> None:
    some = scenes(CALIBRATION_SCENES, 1)
    with pytest.raises(InputError, match="no images to calibrate on"):
        calibrate(mini_bundle, [])
    with pytest.raises(InputError, match="expected one of max, percentile, mask"):
        CalibrationOptions(rule="entropy")
    for percentile in (0.0, 100.5, float("nan")):
        with pytest.raises(InputError, match=r"expected above 0 to 100, such as 99\.99"):
            CalibrationOptions(rule="percentile", percentile=percentile)
    with pytest.raises(InputError, match=r"--keep '\*\.nothing' fits none of the 38 layers"):
        calibrate(mini_bundle, some, CalibrationOptions(keep=("*.nothing",)))
    with pytest.raises(InputError, match="all 38 layers stay unquantised"):
        calibrate(mini_bundle, some, CalibrationOptions(keep=("*",)))
    with pytest.raises(InputError, match="tokens"):
        calibrate(mini_bundle, [CalibrationSample(some[0].image, "very " * 100 + "red")])


def test_numbers_that_are_not_finite_are_no_scales(mini_bundle: Bundle) -> None:
    run = _Run(mini_bundle, None, CalibrationOptions(), None, [], {})  # type: ignore[arg-type]
    histogram = Histogram()
    histogram.add(np.float32([1, np.inf]))
    run.histograms["transformer_blocks.0.attn.to_q"] = histogram
    with pytest.raises(BundleError, match=r"1 values before 'transformer_blocks\.0\.attn\.to_q'"):
        run.check()
