"""`python -m benchmarks.fp8.pytorch`: FP8 masks of PyTorch beside those of onnxruntime.

The built-in model is calibrated, and its transformer is run twice on each scene: as the exported
graph with QuantizeLinear and DequantizeLinear in onnxruntime, and as PyTorch's own modules, whose
linear layers round their inputs and weights with `torch.float8_e4m3fn`. Two libraries that share no
code find the same masks, but for numbers that lie between two of E4M3's.
"""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.fp8.masks import CALIBRATION_SCENES, agreement, scenes, score
from benchmarks.harness.measure import environment
from rism.calibration import Scales, calibrate
from rism.calibration.blockwise_run import LoadedGraph
from rism.calibration.e4m3 import E4M3_MAX
from rism.calibration.emulate import emulated
from rism.calibration.open_graph import open_graph
from rism.export import ExportOptions, export_bundle
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.precision import PRECISIONS
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Arrays, Engine

_OPTIONS = CaptureOptions("vectors")


class TorchTransformer:
    """An engine that runs a bundle's transformer as PyTorch's modules, quantised.

    Args:
        scales: of the built-in model's float32 bundle; None to quantise nothing.

    Raises:
        LookupError: the model has no linear layer of a name that has a scale.
    """

    provider = "torch"

    def __init__(self, scales: Scales | None) -> None:
        model = open_model(find_checkpoint("mini"))
        precision = PRECISIONS["fp32"]
        part = model.transformer(precision).fill()
        self._module = CaptureGraph(part, model.spec, _OPTIONS, precision)
        found = {
            name.removeprefix("dit."): layer
            for name, layer in self._module.named_modules()
            if getattr(getattr(layer, "weight", None), "ndim", 0) == 2
        }
        for name, scale in ({} if scales is None else scales.layers).items():
            if name not in found:
                raise LookupError(f"no layer '{name}', expected one of {sorted(found)}")
            quantise_linear(found[name], scale)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run it once: arrays by the logical names of docs/bundle.md, in and out."""
        names = inspect.signature(self._module.forward).parameters
        given = {n: torch.from_numpy(np.array(a)) for n, a in feeds.items() if n in names}
        with torch.no_grad():
            made = self._module(**given)
        return {n: value.numpy() for n, value in zip(_OPTIONS.outputs, made, strict=True)}


def quantise_linear(layer: nn.Module, scale: float) -> None:
    """Round a layer's weight, by output channel, and from now on what it is given."""
    own = torch.tensor(scale, dtype=torch.float32)
    weight = layer.get_parameter("weight").detach().float()
    channels = weight.abs().amax(dim=1, keepdim=True) / E4M3_MAX
    layer.weight = nn.Parameter(_rounded(weight, channels), requires_grad=False)
    layer.register_forward_pre_hook(lambda _layer, given: (_rounded(given[0], own),))


def _rounded(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    narrow = (values / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return narrow.float() * scale


def by_torch(bundle: Bundle, scales: Scales | None) -> Segmenter:
    """Return a segmenter whose transformer is PyTorch's."""
    engines: dict[str, Engine] = {
        name: LoadedGraph(open_graph(bundle, name))
        for name in bundle.manifest.graphs
        if not name.startswith("transformer.")
    }
    engines["transformer"] = TorchTransformer(scales)
    return Segmenter(bundle, engines, capture="vectors", provider_reason="FP8 emulated by PyTorch")


def main() -> None:
    """Print and store how well the two agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fp8.pytorch", description=__doc__)
    parser.add_argument("--scenes", type=int, default=100, help="to score")
    parser.add_argument("--samples", type=int, default=32, help="to calibrate on")
    parser.add_argument("--bundle", type=Path, help="mini's float32 bundle")
    parser.add_argument("--json", type=Path, help="write the figures there; it keeps the others")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = args.bundle or export_bundle("mini", Path(place) / "mini", ExportOptions()).path
        bundle = Bundle.open(folder)
        scales = calibrate(bundle, scenes(CALIBRATION_SCENES, args.samples)).scales
        found = {}
        for name, own in (("float32", None), ("fp8", scales)):
            theirs = score(by_torch(bundle, own), args.scenes)
            found[name] = asdict(agreement(theirs, score(emulated(bundle, own), args.scenes)))
            print(f"{name}: PyTorch's masks against onnxruntime's {found[name]}", flush=True)
    if args.json:
        results = json.loads(args.json.read_text()) if args.json.exists() else {}
        results["PyTorch against onnxruntime"] = {"scenes": args.scenes} | found
        results["PyTorch against onnxruntime, environment"] = environment(packages=("torch",))
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
