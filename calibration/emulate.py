"""FP8 without a GPU: a quantised bundle in onnxruntime on the CPU.

QuantizeLinear rounds to E4M3 exactly as `rism.calibration.e4m3` and PyTorch do. Products are
computed in the graph's own type (float32 for bfloat16); an engine multiplies FP8 numbers and adds
in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from rism.calibration.blockwise_run import LoadedGraph
from rism.calibration.open_graph import open_graph
from rism.calibration.qdq import quantise
from rism.calibration.scales import Scales
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Engine
from rism.runtime.errors import InputError
from rism.runtime.segmenter import Segmenter

__all__ = ["emulated"]


def emulated(
    bundle: Bundle,
    scales: Scales | None,
    *,
    capture: str | None = None,
    threads: int | None = None,
    edit: Callable[[ir.Model], object] | None = None,
) -> Segmenter:
    """Return a segmenter with a quantised transformer, or with the transformer as it is.

    Args:
        bundle: an open bundle, in any precision, without fixed sizes.
        scales: of it; None to leave the transformer as it is.
        capture: the capture mode; None for the bundle's default.
        threads: CPU threads; None for as many as this process may use.
        edit: another change of the transformer's graph, after the scales' own.

    Raises:
        InputError: the bundle has fixed sizes.
        ProviderError: onnxruntime cannot run a graph.
    """
    if bundle.manifest.geometry.sizes:
        raise InputError(
            "FP8 is emulated for graphs of any size, expected a bundle without --sizes"
        )
    mode = capture or bundle.manifest.default_capture
    engines: dict[str, Engine] = {}
    for name in bundle.manifest.graphs:
        if name.startswith("transformer.") and name != f"transformer.{mode}":
            continue
        graph = open_graph(bundle, name)
        if name.startswith("transformer."):
            if scales is not None:
                quantise(graph.model, scales, casts=True)
            if edit is not None:
                edit(graph.model)
        engines[name.partition(".")[0]] = LoadedGraph(graph, threads=threads)
    return Segmenter(bundle, engines, capture=mode, provider_reason="FP8 emulated on the CPU")
