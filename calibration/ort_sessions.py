"""onnxruntime sessions on the CPU for graphs in memory whose weights lie in a bundle."""

from pathlib import Path
from typing import Any

import onnx_ir as ir

from rism.calibration.open_graph import widen
from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.engines.onnxruntime_session import import_onnxruntime, session_options
from rism.runtime.errors import ProviderError, one_line


def open_session(
    model: ir.Model, folder: Path, *, threads: int | None = None, keep_weights: bool = False
) -> Any:
    """Load a graph that is in memory.

    Weights are mapped from their files. Tensors computed from them (a cast, FP8) are computed in
    each run and freed again, so that at most one widened weight is in memory at a time.

    With `keep_weights` they are computed once and kept, for graphs that run often. The weights'
    files are in `folder`; None for `threads` is as many as this process may use.

    Raises:
        ProviderError: onnxruntime is not there, or cannot run the graph.
    """
    ort = import_onnxruntime()
    entries = {
        "session.model_external_initializers_file_folder_path": str(folder),
        # onnxruntime's fusions of QuantizeLinear and DequantizeLinear refuse FP8.
        "session.disable_quant_qdq": "1",
    }
    options = session_options(threads or cpu_count(), entries)
    options.enable_mem_pattern = False  # every image may have another size
    disabled: list[str] = []
    if not keep_weights:
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Frees the memory of a run, so that it does not add up over the blocks.
        options.enable_cpu_mem_arena = False
        disabled = ["ConstantFolding"]
    try:
        return ort.InferenceSession(
            ir.to_proto(model).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=disabled,
        )
    except Exception as error:  # onnxruntime's exceptions share no base
        raise ProviderError(
            f"onnxruntime cannot load the graph ({one_line(error, limit=200)})"
        ) from None


def widened(model: ir.Model) -> ir.Model:
    """Replace bfloat16, which the CPU cannot compute in, by float32; other types stay."""
    values = (value for node in model.graph.all_nodes() for value in node.outputs)
    if any(value.dtype == ir.DataType.BFLOAT16 for value in values):
        widen(model)
        for node in model.graph.all_nodes():
            if node.op_type == "Cast" and node.outputs[0].dtype is None:
                node.outputs[0].dtype = ir.DataType(node.attributes.get_int("to"))
    return model
