"""What weights in few bits do to the layers and the masks of the built-in model.

The bars: an error of a layer's output of 0.7 of plain rounding's; a mean IoU with the masks of the
fp32 bundle of 0.99 in int8 and of 0.97 in int4, and at most 0.5 and 1.5 points of mIoU lost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.rows import Row, Task, of_value
from benchmarks.scenarios.fp8 import CALIBRATION_SCENES, agreement, scenes, score
from rism.calibration import calibrate
from rism.calibration.activation_moments import moments_to_bytes
from rism.calibration.blockwise_run import StreamedGraph
from rism.calibration.histogram import group_width
from rism.calibration.kept_layers import kept_layers
from rism.calibration.layers import find_layers, values
from rism.calibration.open_graph import open_transformer
from rism.calibration.samples import prepare
from rism.export import ExportOptions, export_bundle
from rism.export.quantisation.block_rounding import DEFAULT_BLOCK, BlockRounding, fitting_block
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle, resolve_bundle

WEIGHED, ALIKE = "rounded by activations", "all weights alike"


def measure(task: Task) -> Iterator[Row]:
    """Give the mean IoU with the fp32 masks, by precision, without and with activations."""
    bundle = Bundle.open(resolve_bundle())
    wanted = score(Segmenter.from_bundle(bundle.path, provider="cpu"), task["scenes"])
    with tempfile.TemporaryDirectory() as place:
        power = Path(place) / "activations.npz"
        report = calibrate(bundle, scenes(CALIBRATION_SCENES, task["samples"]))
        power.write_bytes(moments_to_bytes(report.moments))
        for precision in task["precisions"]:
            for name, activations in ((ALIKE, None), (WEIGHED, power)):
                options = ExportOptions(
                    precision=precision,
                    text_precision=precision,
                    activations=activations,
                    noisy_grid=bundle.manifest.method.noisy_grid,
                )
                written = export_bundle("mini", Path(place) / f"{precision}-{name}", options)
                segmenter = Segmenter.from_bundle(written.path, provider="cpu")
                found = agreement(score(segmenter, task["scenes"]), wanted)
                errors = [each.weight_error or 0 for each in written.rounded]
                facts = asdict(found) | {
                    "layers": sum(each.kept is None for each in written.rounded),
                    "worst_weight_error": round(max(errors), 4),
                    "bytes": written.size_bytes,
                }
                yield of_value(name, found.mean_iou, unit="", group=precision, **facts)


def measure_layers(task: Task) -> Iterator[Row]:
    """Give the median error of layers' outputs, over that of plain rounding, by bits."""
    bundle = Bundle.open(resolve_bundle())
    graph = open_transformer(bundle)
    found = find_layers(graph.model)
    kept = kept_layers([layer.name for layer in found])
    layers = [layer for layer in found if layer.name not in kept]
    tensors = {layer.activation.name or "": list[torch.Tensor]() for layer in layers}
    count = task["samples"]
    with tempfile.TemporaryDirectory() as place:
        samples = prepare(bundle, scenes(CALIBRATION_SCENES, 2 * count), Path(place))
        StreamedGraph(graph).run_all(
            samples.feeds,
            2 * count,
            tapped=tensors,
            on_tap=lambda name, array: tensors[name].append(
                torch.from_numpy(array.copy()).flatten(0, -2)
            ),
        )
    for bits in (8, 4):
        ratios: dict[str, list[float]] = {ALIKE: [], WEIGHED: []}
        for layer in layers:
            weight = torch.from_numpy(np.array(values(layer.weight), np.float32))
            weight = weight.T.contiguous() if layer.channel_axis == 1 else weight
            block = fitting_block(weight.shape[1], DEFAULT_BLOCK)
            assert block is not None, layer.name
            given = tensors[layer.activation.name or ""]
            # What the weights are weighed by is measured on other samples than the error.
            seen, unseen = torch.cat(given[:count]), torch.cat(given[count:])
            plain = _error(unseen, weight, _plain(weight, bits, block))
            for name, moments in ((ALIKE, None), (WEIGHED, _moments(seen))):
                rounded = BlockRounding(bits, block, moments).round(weight)
                ratios[name].append(_error(unseen, weight, rounded) / plain)
        for name, each in ratios.items():
            facts = {"largest": round(max(each), 3), "layers": len(each)}
            yield of_value(name, float(np.median(each)), unit="", group=f"int{bits}", **facts)


def _plain(weight: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """Round to the nearest: the largest number of a block gets the highest integer."""
    blocks, highest = weight.reshape(-1, block), 2 ** (bits - 1) - 1
    scales = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30) / highest
    rounded: torch.Tensor = (blocks / scales).round() * scales
    return rounded.reshape(weight.shape)


def _moments(given: torch.Tensor) -> torch.Tensor:
    groups = given.reshape(len(given), -1, group_width(given.shape[1]))
    found: torch.Tensor = torch.einsum("nbi,nbj->bij", groups, groups)
    return found / len(groups)


def _error(given: torch.Tensor, weight: torch.Tensor, rounded: torch.Tensor) -> float:
    return float((given @ (rounded - weight).T).square().mean().sqrt())
