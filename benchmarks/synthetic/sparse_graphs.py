"""Graphs of the published widths with sparse weights, for building engines of them anywhere.

A sparse checkpoint is opened and traced as every checkpoint is; the weights of the graph are then
in a sparse file, too. An engine that takes its weights as inputs is the same for them as for the
published ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from benchmarks.synthetic.checkpoints import write_model
from rism.calibration.kept_layers import kept_layers
from rism.calibration.layers import find_layers, fingerprint
from rism.calibration.qdq import quantise
from rism.calibration.scales import Scales
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.graph.capture_graph import CaptureOptions
from rism.export.graph.signatures import (
    trace_modulation,
    trace_text,
    trace_transformer,
    trace_vae,
    trace_vision,
)
from rism.export.precision import PRECISIONS
from rism.export.spec import OpenModel

_SIZELESS = {
    "text_encoder": trace_text,
    "vision_encoder": trace_vision,
    "modulation": trace_modulation,
}
_SCALE = 1 / 64  # of every activation; what it is does not change the engine


@dataclass(frozen=True)
class SparseWeights:
    """A model of a sparse checkpoint, and a folder for the weights of its graphs."""

    model: OpenModel
    folder: Path

    def has(self, name: str) -> bool:
        """Tell whether the model has a graph; not every one has the optional encoders."""
        return name not in _SIZELESS or getattr(self.model, name)(PRECISIONS["bf16"]) is not None

    def graph(self, name: str, precision: str) -> ir.Model:
        """Trace one graph; its weights are a sparse file in the folder.

        Args:
            name: as in a manifest: "text_encoder", "vision_encoder", "modulation", "vae_encoder"
                or "transformer.<capture>".
            precision: "fp32", "fp16" or "bf16".
        """
        model, chosen = self.model, PRECISIONS[precision]
        if name == "vae_encoder":
            traced = trace_vae(model.vae_encoder(chosen), model.spec, None)
        elif name in _SIZELESS:
            part = getattr(model, name)(chosen)
            assert part is not None, f"{model.spec.name} has no such graph"
            traced = _SIZELESS[name](part, model.spec)
        else:
            options = CaptureOptions(name.partition(".")[2])
            part = model.transformer(chosen)
            traced = trace_transformer(part, model.spec, options, chosen, None)
        _place(traced, self.folder / f"{name}.{precision}.weights")
        return traced


def open_sparse(name: str, folder: Path, blocks: tuple[int, int] | None = None) -> SparseWeights:
    """Write and open a model whose weights are zeros that take no room."""
    write_model(folder / "checkpoint", name, blocks, seed=None)
    return SparseWeights(open_model(find_checkpoint(str(folder / "checkpoint"))), folder)


def quantise_sparse(graph: ir.Model, file: Path) -> int:
    """Quantise a transformer as `rism build --precision fp8` does, with the default layers.

    Returns:
        How many layers are FP8.
    """
    layers = find_layers(graph)
    kept = kept_layers([layer.name for layer in layers])
    scales = Scales(
        fingerprint=fingerprint(layers),
        model="sparse",
        precision="any",
        rule="max",
        percentile=100.0,
        samples=0,
        layers={layer.name: _SCALE for layer in layers if layer.name not in kept},
        kept=kept,
    )
    return len(quantise(graph, scales, weights="stored", file=file))


def _place(graph: ir.Model, file: Path) -> None:
    """Give every initializer without values a place in a sparse file."""
    end = 0
    for value in graph.graph.initializers.values():
        if value.const_value is not None:
            continue
        assert value.dtype is not None
        assert value.shape is not None
        length = math.prod(value.shape.numpy()) * value.dtype.itemsize
        value.const_value = ir.ExternalTensor(
            location=file.name,
            offset=end,
            length=int(length),
            dtype=value.dtype,
            shape=ir.Shape(value.shape),
            name=value.name or "",
            base_dir=str(file.parent),
        )
        end += int(length) + -int(length) % 4096
    with file.open("wb") as out:
        out.truncate(max(end, 1))
