"""Graphs in onnxruntime: `OrtEngine` runs one, `OnnxRuntime` says how a provider loads them.

Nothing falls back silently: a provider that was asked for by name runs, or its error says what
helps.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from rism.runtime.arrays import Array
from rism.runtime.bundle.graph_spec import MODULATION, GraphSpec, TensorSpec, same_shape
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Arrays, Engine, Load
from rism.runtime.engines.cpu_threads import SMALL_BUNDLE_BYTES, cpu_count, threads_each
from rism.runtime.engines.onnxruntime_session import import_onnxruntime, open_session
from rism.runtime.errors import BundleError, ProviderError, RismError, listed, one_line

_ORT_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
}


class OnnxRuntime:
    """How onnxruntime runs graphs on the CPU; other providers derive from it.

    Attributes:
        label: of the provider, see `providers.Provider`.
        execution_provider: what onnxruntime calls it.
        package: the distribution that brings it.
        gpu: whether it runs on a GPU, by its number.
        max_batch: expressions that a run can hold; None for any number.
    """

    execution_provider = "CPUExecutionProvider"
    package = "onnxruntime"
    gpu = False
    max_batch: int | None = None

    def __init__(self, label: str = "cpu") -> None:
        self.label = label

    def on(self, device: int) -> str:
        """Return what an engine says that it runs on, such as "cpu" or "cuda:0"."""
        return f"{self.label}:{device}" if self.gpu else self.label

    def available(self) -> str | None:
        """Say why "auto" may take it; None where it is not installed.

        Raises:
            ProviderError: onnxruntime itself is not there.
        """
        import_onnxruntime()
        return "this onnxruntime has no CUDA"

    def check(self, device: int) -> None:
        """Refuse a machine that lacks something, a GPU's number included.

        Raises:
            ProviderError: with the way to mend it.
        """
        import_onnxruntime()

    def probe(self, device: int) -> str:
        """Say in what versions it is there, for `rism doctor`; raises as `check` does."""
        self.check(device)
        return f"onnxruntime {import_onnxruntime().__version__}"

    def configure(
        self, options: Any, device: int, *, stream: int | None, settings: Mapping[str, str]
    ) -> list[Any]:
        """Prepare a session's options, and return its list of providers."""
        return [self.execution_provider]

    def load_error(self, file: str, device: int, reason: str) -> RismError:
        """Return the error of a session that did not open."""
        return BundleError(
            f"'{file}' is not a graph that onnxruntime can load ({reason}): export the bundle again"
        )

    def runs(self, graph: str) -> bool:
        """Tell whether it can run a graph of a manifest, by its name."""
        return True

    def settings(self, bundle: Bundle, graph: str) -> dict[str, str]:
        """Return the provider's own options for one graph."""
        return {}

    def engine(self, device: int) -> tuple[Callable[..., Engine], list[str]]:
        """Return what is called as `OrtEngine` is, and what there is to say of that choice."""
        return OrtEngine, []


CPU = OnnxRuntime()


class OrtEngine:
    """A graph in onnxruntime, its tensors checked against the manifest."""

    def __init__(
        self,
        file: Path,
        spec: GraphSpec,
        *,
        backend: OnnxRuntime = CPU,
        device: int = 0,
        threads: int | None = None,
        take_turns: bool = False,
        stream: int | None = None,
        settings: Mapping[str, str] | None = None,
        casts_stay: bool = False,
        lean: bool = False,
    ) -> None:
        """Load an ONNX file, of which the manifest says `spec`, for a provider's backend.

        Without `threads` there are as many as this process may use; with `take_turns` there is one
        run at a time, however many ask. `stream` is CUDA's handle of the stream to work on; None
        for one of its own. For the settings see `OnnxRuntime.settings`, for `casts_stay` and
        `lean` `open_session`.

        Raises:
            ProviderError: onnxruntime or the provider is not there or cannot start.
            BundleError: the file is not a graph, or its tensors are not the manifest's.
        """
        self._spec = spec
        self._file = file.name
        threads = threads or cpu_count()
        self._session = open_session(
            file,
            backend,
            device,
            threads,
            stream=stream,
            settings=settings,
            casts_stay=casts_stay,
            lean=lean,
        )
        self.provider = backend.on(device)
        self._turn: AbstractContextManager[Any] = Lock() if take_turns else nullcontext()
        _check_tensors(self._file, "input", spec.inputs, self._session.get_inputs())
        _check_tensors(self._file, "output", spec.outputs, self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run the graph: arrays by logical name, in and out; inputs are cast to the declared types.

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
            f"{self._file} failed on {self.provider} ({one_line(error, limit=200)}): use "
            "fewer expressions at a time or a smaller image if memory ran out"
        )


def ort_loads(
    bundle: Bundle,
    graphs: Mapping[str, str],
    backend: OnnxRuntime,
    *,
    device: int = 0,
    threads: int | None = None,
    workers: int = 1,
    lean: bool = False,
) -> tuple[dict[str, Load], list[str]]:
    """Return what loads graphs into onnxruntime, by the keys of `graphs`, and notes on the engines.

    Of several workers those with a small bundle on the CPU share its threads and run at once. On a
    GPU, and with a large bundle, they take turns with all threads: a run needs the memory of one.
    """
    small = sum(info.size for info in bundle.manifest.files.values()) < SMALL_BUNDLE_BYTES
    at_once = small and not backend.gpu
    engine, notes = backend.engine(device)

    def load(graph: str) -> Engine:
        spec = bundle.manifest.graphs[graph]
        return engine(
            bundle.file(spec.file if backend.gpu or spec.cpu is None else spec.cpu),
            spec,
            backend=backend,
            device=device,
            threads=threads_each(threads, workers if at_once else 1),
            take_turns=not at_once,
            settings=backend.settings(bundle, graph),
            casts_stay=casts_stay(graph, backend),
            lean=lean,
        )

    name = backend.on(device)
    return {key: (name, partial(load, graph)) for key, graph in graphs.items()}, notes


def casts_stay(graph: str, backend: OnnxRuntime) -> bool:
    """Return whether a graph's weights are cast where they are multiplied; see `open_session`."""
    return graph == MODULATION and not backend.gpu


def _check_tensors(
    file: str, kind: str, specs: Mapping[str, TensorSpec], actual: list[Any]
) -> None:
    found = {tensor.name: tensor for tensor in actual}
    for logical, spec in specs.items():
        if spec.name not in found:
            raise BundleError(
                f"'{file}' has no {kind} '{one_line(spec.name, limit=60)}' (the manifest's "
                f"'{logical}'), it has {listed(found)}: export the bundle again"
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
            f"'{file}' has inputs the manifest does not list ({listed(found)}): "
            "export the bundle again"
        )


def _shape(shape: object) -> str:
    return one_line(list(shape) if isinstance(shape, (tuple, list)) else shape, limit=80)
