"""The part of TensorRT's Python API that rism runs plans with, as types.

TensorRT and TensorRT for RTX ship no stubs; their APIs are one here. The tests hold these
names against the installed library.
"""

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = [
    "EngineObject",
    "ExecutionContext",
    "OnnxParserRefitterObject",
    "RefitterObject",
    "RuntimeCacheObject",
    "RuntimeConfig",
    "RuntimeObject",
    "TensorRt",
]


class ExecutionContext(Protocol):
    """IExecutionContext."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Say how large an input is, before every run that changes it."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Say where a tensor lies on the device."""

    def update_device_memory_size_for_shapes(self) -> int:
        """Return the bytes of scratch memory that the shapes set need; 0 on errors, too."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Give scratch memory, aligned to 256 bytes."""

    def infer_shapes(self) -> list[str]:
        """Return what is not yet specified; empty when the shapes of outputs are known."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Return a tensor's shape, -1 where it is not known."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue a run; false when it could not be."""


class RuntimeCacheObject(Protocol):
    """IRuntimeCache, of TensorRT for RTX alone."""

    def deserialize(self, blob: bytes, /) -> bool:
        """Take kernels; false, and nothing taken, where they are of another environment."""

    def serialize(self) -> Any:
        """Return all kernels as an IHostMemory, which has Python's buffer protocol."""


class RuntimeConfig(Protocol):
    """IRuntimeConfig; all but the first of TensorRT for RTX alone."""

    def set_execution_context_allocation_strategy(self, strategy: Any, /) -> None:
        """Say who allocates scratch memory."""

    dynamic_shapes_kernel_specialization_strategy: Any
    cuda_graph_strategy: Any

    def create_runtime_cache(self) -> RuntimeCacheObject:
        """Return an empty cache."""

    def set_runtime_cache(self, cache: RuntimeCacheObject, /) -> bool:
        """Use a cache in contexts that are made with this config."""


class EngineObject(Protocol):
    """ICudaEngine."""

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""

    @property
    def device_memory_size_v2(self) -> int:
        """The bytes of scratch memory that a run of the largest shapes needs."""

    def get_tensor_name(self, index: int) -> str:
        """Return the name of one of them."""

    def get_tensor_mode(self, name: str) -> Any:
        """Return TensorIOMode.INPUT or .OUTPUT."""

    def get_tensor_dtype(self, name: str) -> Any:
        """Return a DataType."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Return the shape, -1 where it is free."""

    def get_tensor_location(self, name: str) -> Any:
        """Return TensorLocation.DEVICE or .HOST."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Sequence[int]]:
        """Return the smallest, the optimal and the largest shape of an input."""

    def create_runtime_config(self) -> RuntimeConfig:
        """Return an IRuntimeConfig."""

    def create_execution_context(self, how: Any, /) -> ExecutionContext | None:
        """Return a context, by allocation strategy or runtime config; None when it failed."""


class RuntimeObject(Protocol):
    """Runtime."""

    def deserialize_cuda_engine(self, serialized_engine: bytes, /) -> EngineObject | None:
        """Read a plan; None when it failed."""


class RefitterObject(Protocol):
    """Refitter."""

    def refit_cuda_engine(self) -> bool:
        """Give the engine its weights; false when some are missing."""


class OnnxParserRefitterObject(Protocol):
    """OnnxParserRefitter."""

    def refit_from_file(self, model: str, /) -> bool:
        """Read weights from an ONNX file and its external data."""


class TensorRt(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`."""

    @property
    def __version__(self) -> str:
        """Version of the library, such as "1.7.1.116"."""

    @property
    def ILogger(self) -> Any:  # noqa: N802
        """Base class of loggers."""

    @property
    def TensorIOMode(self) -> Any:  # noqa: N802
        """Enumeration."""

    @property
    def TensorLocation(self) -> Any:  # noqa: N802
        """Enumeration."""

    @property
    def ExecutionContextAllocationStrategy(self) -> Any:  # noqa: N802
        """Enumeration."""

    @property
    def DynamicShapesKernelSpecializationStrategy(self) -> Any:  # noqa: N802
        """Enumeration, of TensorRT for RTX alone."""

    def Runtime(self, logger: Any, /) -> RuntimeObject:  # noqa: N802
        """Make what reads plans."""

    def Refitter(self, engine: EngineObject, logger: Any, /) -> RefitterObject:  # noqa: N802
        """Make what gives weights to an engine."""

    def OnnxParserRefitter(  # noqa: N802
        self, refitter: RefitterObject, logger: Any, /
    ) -> OnnxParserRefitterObject:
        """Make what reads them from ONNX."""
