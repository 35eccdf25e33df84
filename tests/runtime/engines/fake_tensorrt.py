"""The edge to TensorRT, recorded: what has the library's names, but runs ONNX in NumPy's memory.

A "plan" is an ONNX file. Addresses are read and written as the real library would, so an engine
that binds a wrong array, shape or dtype gives wrong numbers, not only another list of calls.
"""

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from threading import RLock
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines import cuda_device, nvidia_driver, tensorrt_library, variants
from rism.runtime.engines.nvidia_driver import Driver, Gpu
from rism.runtime.engines.tensorrt import TensorRtEngine
from rism.runtime.engines.tensorrt_library import LIBRARIES, Library
from rism.runtime.errors import ProviderError
from tests.runtime.method.cuda.emulator import EmulatedKernels, emulated

VERSION = "1.7.1.116"
BOUNDS = ("min", "opt", "max")
ADA = Driver((13, 0), (Gpu(0, "RTX 4090", "8.9", 24 * 2**30),))


def _enum(name: str, *names: str) -> Any:
    return IntEnum(name, names, start=0)


Severity = _enum("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
TensorLocation = _enum("TensorLocation", "DEVICE", "HOST")
Strategy = _enum("Strategy", "STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED")
CudaGraphStrategy = _enum("CudaGraphStrategy", "DISABLED", "WHOLE_GRAPH_CAPTURE")
Specialization = _enum("Specialization", "LAZY", "EAGER", "NONE")


class Logger:
    Severity = Severity

    def log(self, severity: Severity, text: str) -> None:
        raise NotImplementedError


class FakeTensorRt:
    """Stands for the module. `calls` has the names of what was called, in order."""

    __version__ = VERSION
    ILogger = Logger
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    ExecutionContextAllocationStrategy = Strategy
    CudaGraphStrategy = CudaGraphStrategy
    DynamicShapesKernelSpecializationStrategy = Specialization
    float32, float16, int64, int32 = "float32", "float16", "int64", "int32"
    # Of weights: none that a plan of the fake can have.
    bfloat16, fp8 = "bfloat16", "float8_e4m3fn"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.profiles: dict[str, list[tuple[int, ...]]] = {}
        self.fails: set[str] = set()
        self.says = "Error Code 2: it hurts"
        self.configs: list[FakeConfig] = []
        self.device: HostDevice | None = None
        self.driver = "580.65"
        self.compiled: list[str] = []  # shapes, by TensorRT for RTX

    def note(self, call: str, logger: Logger) -> bool:
        assert self.device is None or self.device.depth, "the GPU is not the current one"
        self.calls.append(call)
        if call in self.fails:
            logger.log(Severity.ERROR, self.says)
        return call not in self.fails

    def Runtime(self, logger: Logger) -> Any:  # noqa: N802
        self.note("Runtime", logger)

        def deserialize_cuda_engine(plan: bytes) -> FakeEngine | None:
            read = self.note("deserialize_cuda_engine", logger)
            return FakeEngine(self, logger, plan) if read else None

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)

    def Refitter(self, engine: "FakeEngine", logger: Logger) -> Any:  # noqa: N802
        self.note("Refitter", logger)
        return SimpleNamespace(refit_cuda_engine=lambda: self.note("refit_cuda_engine", logger))

    def OnnxParserRefitter(self, refitter: Any, logger: Logger) -> Any:  # noqa: N802
        self.note("OnnxParserRefitter", logger)

        def refit_from_file(file: str) -> bool:
            import onnx

            onnx.load(file)  # with its weights, wherever they lie
            return self.note("refit_from_file", logger)

        return SimpleNamespace(refit_from_file=refit_from_file)


class FakeRuntimeCache:
    """ "Kernels" are the shapes that they were compiled for."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt, self.kernels = trt, set[str]()

    def deserialize(self, blob: bytes) -> bool:
        driver, kernels = json.loads(blob)
        if driver == self._trt.driver:
            self.kernels = set(kernels)
        return bool(driver == self._trt.driver)

    def serialize(self) -> memoryview:
        return memoryview(json.dumps([self._trt.driver, sorted(self.kernels)]).encode())


class FakeConfig:
    """IRuntimeConfig as it is when it is made."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt
        self.strategy, self.cache = Strategy.STATIC, FakeRuntimeCache(trt)
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache(self._trt)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return "set_runtime_cache" not in self._trt.fails


class FakeEngine:
    device_memory_size_v2 = 2**20
    streamable_weights_size, weight_streaming_scratch_memory_size = 1000, 100
    weight_streaming_budget_v2 = -2  # of a plan that does not stream

    def __init__(self, trt: FakeTensorRt, logger: Logger, plan: bytes) -> None:
        import onnxruntime

        self.trt, self.logger = trt, logger
        self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self.tensors = {t.name: (TensorIOMode.INPUT, t) for t in self.session.get_inputs()}
        self.tensors |= {t.name: (TensorIOMode.OUTPUT, t) for t in self.session.get_outputs()}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> str:
        kind = self.tensors[name][1].type
        return {"float": "float32"}.get(kind[7:-1], kind[7:-1])  # of "tensor(float)"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(n if isinstance(n, int) else -1 for n in self.tensors[name][1].shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if "host" in self.trt.fails else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return self.trt.profiles.get(name, [])

    def create_runtime_config(self) -> FakeConfig:
        self.trt.configs.append(FakeConfig(self.trt))
        return self.trt.configs[-1]

    def create_execution_context(self, how: FakeConfig | Strategy) -> "FakeContext | None":
        cache = None
        if isinstance(how, FakeConfig):
            assert how.dynamic_shapes_kernel_specialization_strategy is Specialization.EAGER
            how, cache = how.strategy, how.cache
        assert how is Strategy.USER_MANAGED
        made = self.trt.note("create_execution_context", self.logger)
        return FakeContext(self, cache) if made else None


class FakeContext:
    def __init__(self, engine: FakeEngine, cache: FakeRuntimeCache | None) -> None:
        self._cache = cache
        self._engine, self._trt, self._logger = engine, engine.trt, engine.logger
        # Inputs of one shape need not be told of it.
        shapes = {name: engine.get_tensor_shape(name) for name in self._inputs()}
        self._shapes = {name: shape for name, shape in shapes.items() if -1 not in shape}
        self._addresses: dict[str, int] = {}
        self._results: dict[str, np.ndarray] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return self._trt.note("set_input_shape", self._logger)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return self._trt.note("set_tensor_address", self._logger)

    def update_device_memory_size_for_shapes(self) -> int:
        """More for larger inputs, all of which have to be known."""
        known = self._trt.note("update_device_memory_size_for_shapes", self._logger)
        return self._needed() if known else 0

    def _needed(self) -> int:
        return 4096 + sum(np.prod(self._shapes[name], dtype=int).item() for name in self._inputs())

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory and size >= self._needed()
        self._trt.note("set_device_memory", self._logger)

    def infer_shapes(self) -> list[str]:
        """Run on zeros: only the shapes of what comes out are of interest."""
        self._trt.note("infer_shapes", self._logger)
        zeros = {
            name: np.zeros(self._shapes[name], self._engine.get_tensor_dtype(name))
            for name in self._inputs()
        }
        self._results = self._run(zeros)
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._results[name].shape

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == HostDevice.stream
        if not self._trt.note("execute_async_v3", self._logger):
            return False
        needed = str(sorted(self._shapes.items()))
        if self._cache is not None and needed not in self._cache.kernels:
            self._cache.kernels.add(needed)
            self._trt.compiled.append(needed)
        feeds = {name: self._array(name, self._shapes[name]) for name in self._inputs()}
        for name, result in self._run(feeds).items():
            self._array(name, result.shape)[...] = result
        return True

    def _inputs(self) -> list[str]:
        return [n for n, (mode, _) in self._engine.tensors.items() if mode is TensorIOMode.INPUT]

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [tensor.name for tensor in self._engine.session.get_outputs()]
        return dict(zip(names, self._engine.session.run(names, feeds), strict=True))

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return _at(self._addresses[name], shape, self._engine.get_tensor_dtype(name))


def _at(pointer: int, shape: tuple[int, ...], dtype: str, owner: Any = None) -> np.ndarray:
    """The array that lies at an address, and keeps the owner of its memory."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_byte * size).from_address(pointer)
    memory.owner = owner  # type: ignore[attr-defined]
    return np.frombuffer(memory, dtype).reshape(shape)


class There(np.ndarray):
    """An array of the device, as far as NumPy keeps them apart."""

    def __array_function__(self, function: Any, kinds: Any, given: Any, options: Any) -> Any:
        found = super().__array_function__(function, kinds, given, options)
        return found.view(There) if isinstance(found, np.ndarray) else found


class HostDevice:
    """A `Device` whose memory is NumPy's. Values of new arrays are NaN, or nonsense.

    Kernels are emulated: the results are those of the real source.
    """

    stream = 77
    multiprocessors = 4

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.lock = RLock()
        self.captured = self.launched = 0
        self.refuses_graphs = False
        self.depth = 0
        self._scratch = np.zeros(0, np.uint8)
        self._fetched: list[np.ndarray] = []
        self.compiled: list[EmulatedKernels] = []
        self.trimmed = 0
        self.downloaded: list[tuple[int, ...]] = []
        self.uploaded: list[tuple[int, ...]] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        self.depth += 1
        yield
        self.depth -= 1

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.full(shape, np.nan if dtype.startswith("float") else 1, dtype).view(There)

    def copy(self, source: np.ndarray, *, into: np.ndarray) -> None:
        if not self.holds(source):
            self.uploaded.append(source.shape)
        into[...] = source

    def pointer(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def holds(self, array: Any) -> bool:
        return isinstance(array, There)

    def download(self, array: np.ndarray) -> np.ndarray:
        self.downloaded.append(array.shape)
        return np.array(array)

    def trim(self) -> None:
        self.trimmed += 1

    def scratch(self, nbytes: int) -> np.ndarray:
        if self._scratch.nbytes < nbytes:
            self._scratch = np.zeros(nbytes, np.uint8)
        return self._scratch

    def kernels(self, source: str, macros: dict[str, int]) -> EmulatedKernels:
        self.compiled.append(emulated(source, macros))
        return self.compiled[-1]

    def fetch(self, array: np.ndarray) -> Callable[[], np.ndarray]:
        """Values are there for who waits, and no longer when the next array is fetched."""
        self.downloaded.append(array.shape)
        while self._fetched:
            self._fetched.pop().fill(0x7F)
        values, host = np.array(array), np.full(array.shape, 0x7F, array.dtype)

        def wait() -> np.ndarray:
            host[...] = values
            self._fetched.append(host)
            return host

        return wait

    def wrap(self, pointer: int, shape: tuple[int, ...], dtype: str, owner: Any) -> np.ndarray:
        return _at(pointer, shape, dtype, owner).view(There)

    def mark(self) -> float:
        assert self.depth
        return perf_counter()

    def elapsed_ms(self, first: float, last: float) -> float:
        return (last - first) * 1e3

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        if self.refuses_graphs:
            raise ProviderError("GPU 0 records no CUDA graph (not permitted)")
        self.captured += 1

        def launch() -> None:
            self.launched += 1
            queue()

        return launch


def stand_in(monkeypatch: pytest.MonkeyPatch, device: HostDevice | None = None) -> FakeTensorRt:
    """Put a fake, its memory and a driver for it where a provider looks for the real ones."""
    trt, device = FakeTensorRt(), device or HostDevice()
    monkeypatch.setattr(tensorrt_library, "find_library", lambda target: library(trt, target))
    monkeypatch.setattr(nvidia_driver, "find_driver", lambda: ADA)
    monkeypatch.setattr(variants, "this_platform", lambda: "linux-x86_64")
    monkeypatch.setattr(cuda_device, "open_device", lambda _: device)
    return trt


def load_plan(
    given: Path | Bundle, graph: str, trt: FakeTensorRt, device: HostDevice, **more: Any
) -> TensorRtEngine:
    """Load a plan of a bundle's first engine variant."""
    bundle = given if isinstance(given, Bundle) else Bundle.open(given)
    variant = bundle.manifest.engines[0]
    return TensorRtEngine(
        bundle, variant, graph,
        library=library(trt, variant.target), device=device, rebuild="rism build B", **more,
    )  # fmt: skip


def library(trt: FakeTensorRt, target: str = "tensorrt-rtx") -> Library:
    return Library(target, LIBRARIES[target][1], VERSION, 13, trt)


def variant(folder: Path, graphs: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Write "plans" of the tiny bundle's graphs; return what the manifest says of them.

    Args:
        folder: the bundle.
        graphs: the optimisation profile of each graph, by logical input name: min, opt, max.
        changes: keys of the variant that differ.
    """
    import onnx

    entry: dict[str, Any] = {
        "name": "rtx-fp16", "target": "tensorrt-rtx", "version": VERSION,
        "platform": "linux-x86_64", "compute_capabilities": ["8.6", "8.9"],
        "precision": "fp16", "stripped": False, "graphs": {}, **changes,
    }  # fmt: skip
    place = folder / "engines" / entry["name"]
    place.mkdir(parents=True, exist_ok=True)
    for graph, shapes in graphs.items():
        model = onnx.load(folder / f"{graph}.onnx")
        (place / f"{graph}.plan").write_bytes(model.SerializeToString())
        plan = {
            "file": f"engines/{entry['name']}/{graph}.plan",
            "shapes": {k: dict(zip(BOUNDS, v, strict=True)) for k, v in shapes.items()},
        }
        if entry["stripped"]:
            onnx.save_model(model, place / f"{graph}.refit.onnx")
            plan["refit"] = f"engines/{entry['name']}/{graph}.refit.onnx"
        entry["graphs"][graph] = plan
    return entry
