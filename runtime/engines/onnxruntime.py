"""Engines run one graph: named arrays in, named arrays out.

An engine is whatever has `run` and `provider`; `OrtEngine` is the one over onnxruntime.
`CudaEngine`, which is it on a GPU, and `TensorRtEngine`, which runs plans, can leave their outputs
on the device. Nothing falls back
silently: a provider asked for by name runs, or is an error with the way out.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from rism.runtime.bundle.graph_spec import SIZELESS, GraphSpec, TensorSpec, same_shape
from rism.runtime.bundle.manifest import Manifest, PrecisionInfo
from rism.runtime.bundle.reader import Bundle
from rism.runtime.distribution import install_hint
from rism.runtime.engines import rtx_plugin
from rism.runtime.engines.base import Arrays, Engine, LazyEngine, Load
from rism.runtime.engines.cpu_threads import SMALL_BUNDLE_BYTES, cpu_count, threads_each
from rism.runtime.engines.onnxruntime_session import import_onnxruntime, open_session
from rism.runtime.errors import BundleError, InputError, ProviderError, one_line

__all__ = [
    "OrtEngine",
    "check_precision",
    "choose_provider",
    "full_name",
    "load_all",
    "load_engines",
    "needed_graphs",
    "ort_load",
]

_CHOICES = ("auto", "cpu", "cuda", "rtx")
_ORT_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
}


class OrtEngine:
    """A graph in onnxruntime, its tensors checked against the manifest."""

    def __init__(
        self,
        file: Path,
        spec: GraphSpec,
        *,
        provider: str = "cpu",
        device: int = 0,
        threads: int | None = None,
        take_turns: bool = False,
        stream: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Load a graph.

        Args:
            file: the ONNX file.
            spec: what the manifest says about it.
            provider: "cpu", "cuda" or "rtx"; `choose_provider` resolves "auto".
            device: CUDA device number; not for "cpu".
            threads: CPU threads; None for as many as this process may use.
            take_turns: one run at a time, however many threads ask.
            stream: CUDA's handle of the stream to work on; None for one of its own.
            settings: for "rtx" only; see `rtx_plugin.settings`.

        Raises:
            ProviderError: onnxruntime or the provider is not there or cannot start.
            BundleError: the file is not a graph, or its tensors are not the manifest's.
        """
        self._spec = spec
        self._file = file.name
        threads = threads or cpu_count()
        self._session = open_session(
            file, provider, device, threads, stream=stream, settings=settings
        )
        self._provider = full_name(provider, device)
        self._turn: AbstractContextManager[Any] = Lock() if take_turns else nullcontext()
        _check_tensors(self._file, "input", spec.inputs, self._session.get_inputs())
        _check_tensors(self._file, "output", spec.outputs, self._session.get_outputs())

    @property
    def provider(self) -> str:
        """What it runs on: "cpu", "cuda:<device>" or "rtx:<device>"."""
        return self._provider

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run the graph.

        Args:
            feeds: arrays by logical name; names the graph does not declare are left out, and
                dtypes are cast to the declared ones.

        Returns:
            The declared outputs by logical name.

        Raises:
            ProviderError: onnxruntime failed, for lack of memory for example.
        """
        inputs = {
            spec.name: np.ascontiguousarray(feeds[logical], dtype=np.dtype(spec.dtype))
            for logical, spec in self._spec.inputs.items()
        }
        names = [spec.name for spec in self._spec.outputs.values()]
        try:
            with self._turn:
                outputs = self._session.run(names, inputs)
        except Exception as error:  # onnxruntime's exceptions share no base
            raise self._failure(error) from None
        return dict(zip(self._spec.outputs, outputs, strict=True))

    def _failure(self, error: Exception) -> ProviderError:
        return ProviderError(
            f"{self._file} failed on {self._provider} ({one_line(error, limit=200)}): use "
            "fewer expressions at a time or a smaller picture if memory ran out"
        )


def choose_provider(provider: str) -> tuple[str, str]:
    """Turn "auto" into a provider to try, and say why.

    Returns:
        "cpu", "cuda" or "rtx", and a sentence for whoever asks why. "auto" is never "rtx", which
        does not run every graph.

    Raises:
        InputError: no such provider.
        ProviderError: onnxruntime, or the provider asked for, is not installed.
    """
    if provider not in _CHOICES:
        raise InputError(
            f"provider is '{one_line(provider)}', expected one of {', '.join(_CHOICES)}"
        )
    if provider == "rtx":
        rtx_plugin.check_installed()
    has_cuda = "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()
    if provider == "cuda" and not has_cuda:
        raise ProviderError(
            "provider cuda is not in this onnxruntime, expected onnxruntime-gpu: "
            f"pip uninstall onnxruntime && {install_hint('gpu')}, or use --provider cpu"
        )
    if provider != "auto":
        return provider, "asked for"
    if has_cuda:
        return "cuda", "auto: onnxruntime has CUDA"
    return "cpu", "auto: this onnxruntime has no CUDA"


def check_precision(precision: PrecisionInfo, provider: str, why: str) -> None:
    """Refuse what a provider cannot compute in, before anything is loaded.

    Args:
        precision: the bundle's.
        provider: "cpu", "cuda" or "rtx".
        why: how that provider came to be, for the message.

    Raises:
        ProviderError: bfloat16 on the CPU, float32 on the plugin.
    """
    if provider == "cpu" and precision.compute == "bfloat16":
        raise ProviderError(
            f"provider cpu ({why}) cannot run this bundle, which computes in bfloat16, expected "
            "float32 or float16: export with --precision fp32 or fp16, or use --provider cuda"
        )
    if provider == "rtx" and precision.compute not in rtx_plugin.COMPUTES:
        raise ProviderError(
            f"provider onnxruntime-tensorrt-rtx ({why}) cannot run this bundle, which computes in "
            f"{precision.compute}, expected {' or '.join(rtx_plugin.COMPUTES)} (TensorRT for "
            "RTX has no attention in float32): export with --precision fp16 or bf16, or use "
            "--provider cuda"
        )


def load_engines(
    bundle: Bundle,
    capture: str,
    *,
    provider: str = "cpu",
    device: int = 0,
    threads: int | None = None,
    lazy_text: bool = False,
) -> dict[str, Engine]:
    """Load a bundle's "transformer" (of one capture mode) and its encoders.

    All at once: parsing and weight packing are mostly single-threaded. Graphs of fixed
    sizes ("transformer@512x512") are each loaded when first needed.

    Args:
        bundle: an open bundle.
        capture: a capture mode that the bundle has.
        provider: "cpu" or "cuda".
        device: CUDA device number.
        threads: CPU threads; None for as many as this process may use.
        lazy_text: load the text encoder and the vision encoder, too, when first needed.

    Raises:
        ProviderError, BundleError: see `OrtEngine`.
    """
    loads = ort_load(
        bundle,
        needed_graphs(bundle.manifest, capture),
        provider=provider,
        device=device,
        threads=threads,
    )
    return load_all(loads, sized=bool(bundle.manifest.geometry.sizes), lazy_text=lazy_text)


def needed_graphs(manifest: Manifest, capture: str) -> dict[str, str]:
    """Return the graphs that a capture mode needs, by what `load_engines` calls their engines."""
    graphs = {name: name for name in SIZELESS if name in manifest.graphs}
    for size_wh in manifest.geometry.sizes or (None,):
        for name, graph in (("vae_encoder",) * 2, ("transformer", f"transformer.{capture}")):
            graphs[manifest.at_size(name, size_wh)] = manifest.at_size(graph, size_wh)
    return graphs


def ort_load(
    bundle: Bundle,
    graphs: Mapping[str, str],
    *,
    provider: str = "cpu",
    device: int = 0,
    threads: int | None = None,
    workers: int = 1,
    engine: Callable[..., Engine] = OrtEngine,
) -> dict[str, Load]:
    """Return what loads graphs into onnxruntime, by the keys of `graphs`; see `load_engines`.

    Of several workers those with a small bundle on the CPU share its threads and run at once.
    On a GPU, and with a large bundle, they take turns with all threads: a run has the memory
    that it had alone. `engine` is called as `OrtEngine` is, see `cuda_engine.ort_engine`.
    """
    small = sum(info.size for info in bundle.manifest.files.values()) < SMALL_BUNDLE_BYTES
    at_once = small and provider == "cpu"

    def load(graph: str) -> Engine:
        spec = bundle.manifest.graphs[graph]
        return engine(
            bundle.file(spec.file),
            spec,
            provider=provider,
            device=device,
            threads=threads_each(threads, workers if at_once else 1),
            take_turns=not at_once,
            settings=rtx_plugin.settings(bundle, graph) if provider == "rtx" else None,
        )

    name = full_name(provider, device)
    return {key: (name, partial(load, graph)) for key, graph in graphs.items()}


def load_all(loads: Mapping[str, Load], *, sized: bool, lazy_text: bool) -> dict[str, Engine]:
    """Load engines at once, or as they are needed.

    Args:
        loads: by the names of `load_engines`.
        sized: there is one for each size, each to be loaded when first needed.
        lazy_text: the encoders of text and its view, too.
    """

    def prepare(key: str) -> Engine:
        provider, load = loads[key]
        if lazy_text if key in SIZELESS else sized:
            return LazyEngine(load, provider=provider)
        return load()

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(loads, pool.map(prepare, loads), strict=True))


def full_name(provider: str, device: int) -> str:
    """Return what an engine says that it runs on, such as "cpu" or "cuda:0"."""
    return "cpu" if provider == "cpu" else f"{provider}:{device}"


def _check_tensors(
    file: str, kind: str, specs: Mapping[str, TensorSpec], actual: list[Any]
) -> None:
    found = {tensor.name: tensor for tensor in actual}
    for logical, spec in specs.items():
        if spec.name not in found:
            raise BundleError(
                f"'{file}' has no {kind} '{one_line(spec.name, limit=60)}' (the manifest's "
                f"'{logical}'), it has {_names(found)}: export the bundle again"
            )
        tensor = found.pop(spec.name)
        if tensor.type != _ORT_TYPES[spec.dtype]:
            raise BundleError(
                f"'{file}': {kind} '{logical}' is {tensor.type}, expected "
                f"{_ORT_TYPES[spec.dtype]} by the manifest: export the bundle again"
            )
        if not same_shape(spec.shape, tensor.shape):
            raise BundleError(
                f"'{file}': {kind} '{logical}' has shape {_shape(tensor.shape)}, expected "
                f"{_shape(spec.shape)} by the manifest: export the bundle again"
            )
    if kind == "input" and found:
        raise BundleError(
            f"'{file}' has inputs the manifest does not list ({_names(found)}): "
            "export the bundle again"
        )


def _shape(shape: object) -> str:
    return one_line(list(shape) if isinstance(shape, (tuple, list)) else shape, limit=80)


def _names(found: Mapping[str, Any]) -> str:
    return one_line(", ".join(found) or "none", limit=120)
