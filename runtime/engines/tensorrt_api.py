"""The part of TensorRT's Python API that rism runs plans with, as types.

TensorRT and TensorRT for RTX ship no stubs; their APIs are one here, and their documentation says
what the methods do. The tests hold these names against the installed library.
"""

# ruff: noqa: D102, N802
from collections.abc import Sequence
from typing import Any, Protocol


class ExecutionContext(Protocol):
    """IExecutionContext."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def set_device_memory(self, memory: int, size: int) -> None: ...
    def update_device_memory_size_for_shapes(self) -> int: ...  # 0 on errors, too
    def infer_shapes(self) -> list[str]: ...  # names of tensors that lack a shape
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class RuntimeCacheObject(Protocol):
    """IRuntimeCache, of TensorRT for RTX alone."""

    def deserialize(self, blob: bytes, /) -> bool: ...
    def serialize(self) -> Any: ...  # IHostMemory, which has Python's buffer protocol


class RuntimeConfig(Protocol):
    """IRuntimeConfig; all but the first of TensorRT for RTX alone."""

    def set_execution_context_allocation_strategy(self, strategy: Any, /) -> None: ...
    def create_runtime_cache(self) -> RuntimeCacheObject: ...
    def set_runtime_cache(self, cache: RuntimeCacheObject, /) -> bool: ...

    dynamic_shapes_kernel_specialization_strategy: Any
    cuda_graph_strategy: Any


class EngineObject(Protocol):
    """ICudaEngine."""

    num_io_tensors: int
    device_memory_size_v2: int
    streamable_weights_size: int
    weight_streaming_scratch_memory_size: int
    weight_streaming_budget_v2: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Any: ...  # TensorIOMode
    def get_tensor_dtype(self, name: str) -> Any: ...  # DataType
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...  # -1 where it is free
    def get_tensor_location(self, name: str) -> Any: ...  # TensorLocation
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Sequence[int]]: ...
    def create_runtime_config(self) -> RuntimeConfig: ...
    def create_execution_context(self, how: Any, /) -> ExecutionContext | None: ...


class RuntimeObject(Protocol):
    """Runtime."""

    def deserialize_cuda_engine(self, serialized_engine: bytes, /) -> EngineObject | None: ...


class RefitterObject(Protocol):
    """Refitter."""

    def refit_cuda_engine(self) -> bool: ...


class OnnxParserRefitterObject(Protocol):
    """OnnxParserRefitter."""

    def refit_from_file(self, model: str, /) -> bool: ...


class TensorRt(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`."""

    __version__: str
    ILogger: Any
    TensorIOMode: Any
    TensorLocation: Any
    ExecutionContextAllocationStrategy: Any
    DynamicShapesKernelSpecializationStrategy: Any  # of TensorRT for RTX alone

    def Runtime(self, logger: Any, /) -> RuntimeObject: ...
    def Refitter(self, engine: EngineObject, logger: Any, /) -> RefitterObject: ...
    def OnnxParserRefitter(
        self, refitter: RefitterObject, logger: Any, /
    ) -> OnnxParserRefitterObject: ...
