"""A graph in onnxruntime on a GPU, its inputs and outputs where CuPy has them.

The session works on the device's one stream: what is queued there before it and behind it needs
no synchronisation, and memory that nobody refers to any more is used again in that order.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rism.runtime.bundle.graph_spec import GraphSpec, TensorSpec
from rism.runtime.distribution import install_hint
from rism.runtime.engines import nvidia_driver
from rism.runtime.engines.base import Engine
from rism.runtime.engines.cuda_device import Device, DeviceArray, open_device
from rism.runtime.engines.device_engine import DeviceEngine, held
from rism.runtime.engines.onnxruntime import OnnxRuntime, OrtEngine
from rism.runtime.engines.onnxruntime_session import import_onnxruntime
from rism.runtime.errors import ProviderError, RismError

# Of onnxruntime's: what a graph reads there is not read by the GPU.
_HOST_MEMORY = ("Cpu", "CudaPinned")


class CudaEngine(DeviceEngine, OrtEngine):
    """A graph in onnxruntime on a GPU, its outputs left there."""

    def __init__(self, file: Path, spec: GraphSpec, *, there: Device, **how: Any) -> None:
        """Load a graph, see `OrtEngine`; runs take turns by the lock of the GPU `there`."""
        super().__init__(file, spec, stream=there.stream, **how)
        self.device = there
        given, lies = self._session.get_inputs(), self._session.get_input_memory_infos()
        self._read_by_host = {
            tensor.name
            for tensor, info in zip(given, lies, strict=True)
            if info.name in _HOST_MEMORY
        }
        # Otherwise each run would end with the host waiting for the stream.
        self._how = import_onnxruntime().RunOptions()
        self._how.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run_on_device(
        self, feeds: Mapping[str, Any], *, borrow: bool = False
    ) -> dict[str, DeviceArray]:
        """Queue a run, see `DeviceEngine`; each has outputs of its own, so none are borrowed."""
        del borrow
        outputs = self._spec.outputs
        with held(self.device):
            binding = self._session.io_binding()
            try:
                kept = [
                    self._bind(binding, spec, feeds[logical])
                    for logical, spec in self._spec.inputs.items()
                ]
                for spec in outputs.values():
                    binding.bind_output(spec.name, "cuda", self.device.number)
                self._session.run_with_iobinding(binding, self._how)
            except Exception as error:  # onnxruntime's exceptions share no base
                raise self._failure(error) from None
            del kept  # of CuPy's memory, which is used again in the stream's order
            return {
                logical: self.device.wrap(
                    value.data_ptr(), tuple(value.shape()), spec.dtype, (binding, value)
                )
                for (logical, spec), value in zip(
                    outputs.items(), binding.get_outputs(), strict=True
                )
            }

    def _bind(self, binding: Any, spec: TensorSpec, feed: Any) -> Any:
        """Tell a run of an input; the result has to outlive the run's queueing."""
        device = self.device
        if spec.name in self._read_by_host:
            host = device.download(feed) if device.holds(feed) else feed
            host = np.ascontiguousarray(host, dtype=np.dtype(spec.dtype))
            binding.bind_cpu_input(spec.name, host)
            return host
        array = feed
        usable = device.holds(feed) and feed.dtype == spec.dtype and feed.flags.c_contiguous
        if not usable:
            array = device.empty(tuple(feed.shape), spec.dtype)
            device.copy(feed, into=array)
        dtype, where = np.dtype(spec.dtype).type, device.pointer(array)
        binding.bind_input(spec.name, "cuda", device.number, dtype, tuple(array.shape), where)
        return array


class OnnxRuntimeCuda(OnnxRuntime):
    """How onnxruntime runs graphs on a GPU by its own CUDA kernels."""

    execution_provider = "CUDAExecutionProvider"
    package = "onnxruntime-gpu"
    gpu = True

    def available(self) -> str | None:
        """Say that this build of onnxruntime has CUDA; None where it has not."""
        there = self.execution_provider in import_onnxruntime().get_available_providers()
        return "onnxruntime has CUDA" if there else None

    def check(self, device: int) -> None:
        """Refuse a build of onnxruntime without CUDA; a GPU is first asked for by a session."""
        if self.available() is None:
            raise ProviderError(
                f"provider {self.label} is not in this onnxruntime, expected onnxruntime-gpu: "
                f"pip uninstall onnxruntime && {install_hint('gpu')}, or use --provider cpu"
            )

    def probe(self, device: int) -> str:
        """Name onnxruntime and the GPU, and say whether outputs have to leave it."""
        ready = f"{super().probe(device)} on {nvidia_driver.find_driver().gpu(device)}"
        return "; ".join([ready, *self.engine(device)[1]])

    def configure(
        self, options: Any, device: int, *, stream: int | None, settings: Mapping[str, str]
    ) -> list[Any]:
        """Return the provider's options.

        Names and values: onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html.
        """
        ort = import_onnxruntime()
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        ours = {
            **({} if stream is None else {"user_compute_stream": str(stream)}),
            "device_id": device,
            "use_tf32": 0,  # a float32 bundle would miss its own parity figures
            # Its default, EXHAUSTIVE, times every algorithm of each convolution at each new size.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Its default takes the next power of two, up to twice what a run needs.
            "arena_extend_strategy": "kSameAsRequested",
        }
        return [(self.execution_provider, ours)]

    def load_error(self, file: str, device: int, reason: str) -> RismError:
        """Tell CUDA's failures from graphs that are none."""
        if "cuda" not in reason.lower():
            return super().load_error(file, device, reason)
        return ProviderError(
            f"provider {self.label} could not start on device {device} ({reason}): check "
            "nvidia-smi, or use --provider cpu"
        )

    def engine(self, device: int) -> tuple[Callable[..., Engine], list[str]]:
        """Return what leaves its outputs on the GPU, or why they are copied to the host."""
        try:
            return partial(CudaEngine, there=open_device(device)), []
        except ProviderError as error:
            why = f"its outputs are copied to the host and post-processed there: {error}"
            return OrtEngine, [why]
