"""FP8 and NVFP4 without a GPU: a quantised bundle in onnxruntime on the CPU.

QuantizeLinear rounds to E4M3 exactly as `rism.calibration.e4m3` and PyTorch do. Products are
computed in the graph's own type (float32 for bfloat16); an engine multiplies FP8 numbers and adds
in float32.
"""

from rism.calibration.blockwise_run import LoadedGraph
from rism.calibration.nvfp4_graph import emulate_nvfp4
from rism.calibration.open_graph import open_graph
from rism.calibration.qdq import quantise
from rism.calibration.scales import Scales
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Engine
from rism.runtime.errors import InputError
from rism.runtime.names import EnginePrecision
from rism.runtime.segmenter import Segmenter


def emulated(
    bundle: Bundle, scales: Scales | None, precision: EnginePrecision = "fp8"
) -> Segmenter:
    """Return a segmenter with a quantised transformer; FP8 without scales leaves it as it is.

    Raises:
        InputError: the bundle has fixed sizes.
        ProviderError: onnxruntime cannot run a graph.
    """
    if bundle.manifest.geometry.sizes:
        raise InputError(
            f"{precision} is emulated for graphs of any size, expected a bundle without --sizes"
        )
    transformer = f"transformer.{bundle.manifest.default_capture}"
    engines: dict[str, Engine] = {}
    for name in bundle.manifest.graphs:
        if name.startswith("transformer.") and name != transformer:
            continue
        graph = open_graph(bundle, name)
        if name == transformer and precision != "fp8":
            emulate_nvfp4(graph.model, scales if precision == "nvfp4" else None)
        elif name == transformer and scales is not None:
            quantise(graph.model, scales, casts=True)
        engines[name.partition(".")[0]] = LoadedGraph(graph)
    capture = bundle.manifest.default_capture
    reason = f"{precision} emulated on the CPU"
    return Segmenter(bundle, engines, capture=capture, provider_reason=reason)
