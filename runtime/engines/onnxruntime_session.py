"""Sessions of onnxruntime: how every one of ours is opened, in use and in benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rism.runtime.distribution import install_hint
from rism.runtime.errors import ProviderError, one_line

if TYPE_CHECKING:
    from rism.runtime.engines.onnxruntime import OnnxRuntime


# Sums fused with the norm behind them are rounded otherwise, and not where a stage ends: a graph
# in stages would not give the bits of the whole.
_NOT_FUSED = ("SkipLayerNormFusion",)


def import_onnxruntime() -> Any:
    """Return the module.

    Raises:
        ProviderError: it cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            f"onnxruntime cannot be imported ({one_line(error, limit=80)}): "
            f"{install_hint('cpu')}, or the extra gpu instead"
        ) from None
    return onnxruntime


def session_options(threads: int, entries: Mapping[str, str]) -> Any:
    """Return the options of a session, with entries of onnxruntime's session configuration."""
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 4  # failures are raised; onnxruntime would print them as well
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # In the graph's own order. The default may run what an attention's matrix is reduced to at the
    # end, and keep the matrices of all blocks until then.
    options.execution_order = import_onnxruntime().ExecutionOrder.PRIORITY_BASED
    # Sessions take turns: a spinning pool would starve the next one's.
    for key, value in {"session.intra_op.allow_spinning": "0", **entries}.items():
        options.add_session_config_entry(key, value)
    return options


def open_session(
    file: Path,
    backend: OnnxRuntime,
    device: int,
    threads: int,
    *,
    stream: int | None = None,
    entries: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    part: bytes | None = None,
    lean: bool = False,
    casts_stay: bool = False,
) -> Any:
    """Open a graph in onnxruntime, on a provider or not at all; see `OrtEngine`.

    `entries` are more of onnxruntime's session configuration. `part` is a model on the weights
    beside the file, to open in the place of the file's. With `lean` a run takes no more memory than
    it needs, and gives it back; otherwise memory is kept for the next run. With `casts_stay`
    weights stay in the file, and are cast when they are multiplied with, as suits a graph that is
    run once for each prompt; otherwise casts are folded into copies of the weights.
    """
    ort = import_onnxruntime()
    if part is not None:
        folder = {"session.model_external_initializers_file_folder_path": str(file.parent)}
        entries = {**(entries or {}), **folder}
    options = session_options(threads, entries or {})
    if lean:
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    if casts_stay:
        # Naming ConstantFolding alone as what is disabled has no effect in 1.31.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = backend.configure(options, device, stream=stream, settings=settings or {})
    try:
        # Its default makes the session anew on the CPU where one fails, and prints that it did.
        model = str(file) if part is None else part
        session = ort.InferenceSession(
            model, options, providers=providers, enable_fallback=0, disabled_optimizers=_NOT_FUSED
        )
    except Exception as error:  # onnxruntime's exceptions share no base
        raise backend.load_error(file.name, device, one_line(error, limit=200)) from None
    if session.get_providers()[0] != backend.execution_provider:
        raise ProviderError(
            f"provider {backend.label} could not start on device {device} (onnxruntime would have "
            f"run {session.get_providers()[0]} instead): check the driver and CUDA libraries with "
            "nvidia-smi, or use --provider cpu"
        )
    return session
