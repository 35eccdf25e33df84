"""Sessions of onnxruntime: how every one of ours is opened, in use and in benchmarks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rism.runtime.distribution import install_hint
from rism.runtime.engines import rtx_plugin
from rism.runtime.errors import BundleError, ProviderError, RismError, one_line

__all__ = ["cuda_options", "import_onnxruntime", "open_session"]


def import_onnxruntime() -> Any:
    """Return the module.

    Raises:
        ProviderError: it is not there.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            f"onnxruntime cannot be imported ({one_line(error, limit=80)}): "
            f"{install_hint('cpu')}, or the extra gpu instead"
        ) from None
    return onnxruntime


def cuda_options(device: int, stream: int | None = None) -> dict[str, Any]:
    """Return what onnxruntime's CUDA provider is told in every session of ours.

    Names and values: onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html.

    Args:
        device: CUDA device number.
        stream: CUDA's handle of a stream to work on; None for one of its own.
    """
    ours = {} if stream is None else {"user_compute_stream": str(stream)}
    return {
        **ours,
        "device_id": device,
        "use_tf32": 0,  # a float32 bundle would miss its own parity figures
        # Its default, EXHAUSTIVE, times every algorithm of each convolution at each new size.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Its default takes the next power of two, up to twice what a run needs.
        "arena_extend_strategy": "kSameAsRequested",
    }


def open_session(
    file: Path,
    provider: str,
    device: int,
    threads: int,
    *,
    stream: int | None = None,
    entries: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Any:
    """Open a graph in onnxruntime, on a provider or not at all.

    Args:
        file: the ONNX file.
        provider: "cpu", "cuda" or "rtx".
        device: CUDA device number.
        threads: CPU threads.
        stream: see `cuda_options`.
        entries: more of onnxruntime's session configuration.
        settings: of the plugin; see `rtx_plugin.settings`.

    Raises:
        ProviderError, BundleError: see `engines.OrtEngine`.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # failures are raised; onnxruntime would print them as well
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Sessions take turns: a spinning pool would starve the next one's.
    for key, value in {"session.intra_op.allow_spinning": "0", **(entries or {})}.items():
        options.add_session_config_entry(key, value)
    providers: list[Any]
    if provider == "cuda":
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        wanted = "CUDAExecutionProvider"
        providers = [(wanted, cuda_options(device, stream))]
    elif provider == "rtx":
        wanted, providers = rtx_plugin.EP_NAME, []  # those of the options
        options.add_provider_for_devices([rtx_plugin.find_device(device)], settings or {})
        # One node that the plugin leaves to the CPU, and there is no session.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    else:
        wanted = "CPUExecutionProvider"
        providers = [wanted]
    try:
        # Its default makes the session anew on the CPU where one fails, and prints that it did.
        session = ort.InferenceSession(str(file), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base
        raise _load_error(file, provider, device, error) from None
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"provider {provider} could not start on device {device} (onnxruntime would have run "
            f"{session.get_providers()[0]} instead): check the driver and CUDA libraries with "
            "nvidia-smi, or use --provider cpu"
        )
    return session


def _load_error(file: Path, provider: str, device: int, error: Exception) -> RismError:
    reason = one_line(error, limit=200)
    if provider == "rtx":
        return ProviderError(
            f"TensorRT for RTX cannot run '{file.name}' ({reason}): see rism doctor, or use "
            "--provider onnxruntime-cuda"
        )
    if provider == "cuda" and ("CUDA" in reason or "cuda" in reason):
        return ProviderError(
            f"provider cuda could not start on device {device} ({reason}): check nvidia-smi, or "
            "use --provider cpu"
        )
    return BundleError(
        f"'{file.name}' is not a graph that onnxruntime can load ({reason}): "
        "export the bundle again"
    )
