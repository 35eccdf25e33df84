"""CuPy's edge: what a device does with it, on arrays that stand for a GPU's."""

import sys
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pytest

from rism.runtime import ProviderError
from rism.runtime.distribution import install_hint
from rism.runtime.engines.cuda_device import Device


class GpuArray:
    """`cupy.ndarray`: no NumPy array, and fed from the host by `set` alone."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape, self.dtype, self.nbytes = values.shape, values.dtype, values.nbytes
        self.size = values.size
        self.data = SimpleNamespace(ptr=values.ctypes.data)

    def set(self, source: np.ndarray, stream: Any = None) -> None:
        assert type(source) is np.ndarray and source.flags.c_contiguous
        assert source.dtype == self.dtype and source.shape == self.shape
        self.values[...] = source
        stream.done.append("set")

    def __setitem__(self, where: Any, source: "GpuArray") -> None:
        self.values[where] = source.values
        Current.stream[-1].done.append("copy")


class Current:
    stream: list["Stream"] = []  # noqa: RUF012


class Stream:
    def __init__(self, *, non_blocking: bool) -> None:
        assert non_blocking
        self.ptr, self.done = 4711, list[str]()

    def __enter__(self) -> None:
        Current.stream.append(self)

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Current.stream.pop()

    def begin_capture(self) -> None:
        self.done.append("begin")

    def end_capture(self) -> Any:
        self.done.append("end")
        if "work" not in self.done:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated:\ncapture invalidated")
        return SimpleNamespace(launch=lambda stream: stream.done.append("launch"))


class Gpu:
    def __init__(self, number: int) -> None:
        if number > 1:
            raise RuntimeError("cudaErrorInvalidDevice:\ninvalid device ordinal")

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    attributes = {"MultiProcessorCount": 132, "WarpSize": 32}  # noqa: RUF012


class Event:
    """Each is recorded ten milliseconds after the one before."""

    now = 0

    def record(self, stream: Stream) -> None:
        Event.now += 10
        self.at, self.waited = Event.now, False
        stream.done.append("event")

    def synchronize(self) -> None:
        self.waited = True


class RawModule:
    """Compiles what has a brace, and writes down its launches."""

    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        self.code, self.options = code, options

    def compile(self) -> None:
        assert Current.stream
        if "{" not in self.code:
            raise RuntimeError("postprocess.cu(1): error:\nexpected a brace")

    def get_function(self, name: str) -> Any:
        def kernel(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any]) -> None:
            Current.stream[-1].done.append((name, grid, block, arguments))

        return kernel


class Wrapped:
    """`cupy.ndarray` as it is made over memory of somebody else."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], memory: Any) -> None:
        self.shape, self.dtype, self.memory = shape, dtype, memory
        self.device = SimpleNamespace(id=memory[3])


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    def asnumpy(
        array: GpuArray, stream: Stream, out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        stream.done.append("get" if blocking else "get later")
        if out is None:
            return array.values.copy()
        out[...] = array.values
        return out

    def elapsed(first: Event, last: Event) -> float:
        assert last.waited
        return last.at - first.at

    def pinned(size: int) -> bytearray:
        return bytearray(size + 512)  # CuPy rounds up

    fake = SimpleNamespace(
        __version__="14.2.0",
        cuda=SimpleNamespace(
            Device=Gpu,
            Stream=Stream,
            Event=Event,
            get_elapsed_time=elapsed,
            alloc_pinned_memory=pinned,
            UnownedMemory=lambda *given: given,
            MemoryPointer=lambda memory, offset: (*memory, offset),
        ),
        ndarray=Wrapped,
        RawModule=RawModule,
        empty=lambda shape, dtype: GpuArray(np.empty(shape, dtype)),
        asnumpy=asnumpy,
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_arrays_come_and_go_on_one_stream(cupy: Any) -> None:
    device = Device(1)
    assert (device.number, device.stream) == (1, 4711)
    first, second = (device.empty((2, 3), "float32") for _ in range(2))
    # Another dtype, and not contiguous: what callers have.
    device.copy(np.arange(6, dtype=np.int64).reshape(3, 2).T, into=first)
    device.copy(first, into=second)
    found = device.download(second)
    np.testing.assert_array_equal(found, [[0, 2, 4], [1, 3, 5]])
    assert found.dtype == np.float32
    assert device.pointer(second) == second.values.ctypes.data
    assert device._stream.done == ["set", "copy", "get"]


def test_scratch_grows_and_is_shared(cupy: Any) -> None:
    device = Device()
    large = device.scratch(1000)
    assert large.nbytes == 1000
    assert device.scratch(10) is large
    assert device.scratch(1001).nbytes == 1001


def test_a_graph_is_captured_and_launched(cupy: Any) -> None:
    device = Device()
    launch = device.capture(lambda: device._stream.done.append("work"))
    launch()
    launch()
    assert device._stream.done == ["begin", "work", "end", "launch", "launch"]


def test_a_capture_that_fails_is_ended_and_says_why(cupy: Any) -> None:
    """The end of a capture that failed is an error of its own, which is not the reason."""
    device = Device()

    def fail() -> None:
        raise ValueError("the engine\nfailed")

    with pytest.raises(ProviderError) as error:
        device.capture(fail)
    assert str(error.value) == "GPU 0 records no CUDA graph (the engine failed)"
    assert device._stream.done == ["begin", "end"]
    with pytest.raises(ProviderError, match=r"graph \(cudaErrorStreamCaptureInvalidated: capture"):
        device.capture(lambda: None)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.capture(interrupt)
    assert device._stream.done == ["begin", "end"] * 3


def test_kernels_are_compiled_and_launched_on_the_stream(cupy: Any) -> None:
    device = Device()
    kernels = device.kernels("void k() {}", {"HELD": 3, "THREADS": 256})
    assert kernels._module.options == ("--std=c++17", "--fmad=false", "-DHELD=3", "-DTHREADS=256")
    array = device.empty((4,), "float32")
    for _ in range(2):
        kernels.launch("k", (5, 2, 1), 256, [array, np.int32(7)])
    assert device._stream.done == [("k", (5, 2, 1), (256, 1, 1), (array, np.int32(7)))] * 2
    assert device.multiprocessors == 132


def test_kernels_that_do_not_compile(cupy: Any) -> None:
    with pytest.raises(ProviderError) as error:
        Device().kernels("void k()", {})
    assert str(error.value) == (
        "CuPy 14.2.0 cannot compile the kernels of post-processing for GPU 0 (postprocess.cu(1): "
        f"error: expected a brace): {install_hint('cuda')}, which brings NVIDIA's compiler, or "
        "use --provider onnxruntime-cpu"
    )


def test_an_array_is_fetched_in_page_locked_memory(cupy: Any) -> None:
    """Queued at once, waited for by who wants it; each has memory of its own."""
    device = Device()
    arrays = [device.empty((3, 4), "float32"), device.empty((5,), "uint8")]
    for each in arrays:
        device.copy(np.arange(each.size).reshape(each.shape), into=each)
    del device._stream.done[:]
    waits = [device.fetch(each) for each in arrays]
    assert device._stream.done == ["get later", "event"] * 2
    for each, wait in zip(arrays, waits, strict=True):
        np.testing.assert_array_equal(wait(), each.values)


def test_memory_of_another_library_is_kept_by_its_owner(cupy: Any) -> None:
    owner = np.arange(6, dtype=np.float16)
    device = Device(1)
    array = device.wrap(owner.ctypes.data, (2, 3), "float16", owner)
    assert (array.shape, array.dtype) == ((2, 3), np.float16)
    assert array.memory == (owner.ctypes.data, 12, owner, 1, 0)
    assert device.holds(array)
    assert not Device(0).holds(array) and not device.holds(owner)


def test_time_between_two_points(cupy: Any) -> None:
    device = Device()
    first, last = device.mark(), device.mark()
    assert device.elapsed_ms(first, last) == 10
    assert device._stream.done == ["event", "event"]


def test_a_gpu_that_cupy_cannot_use(cupy: Any) -> None:
    with pytest.raises(ProviderError) as error:
        Device(2)
    assert str(error.value) == (
        "CuPy 14.2.0 cannot use GPU 2 (cudaErrorInvalidDevice: invalid device ordinal): see "
        "nvidia-smi, update the driver, or use --provider onnxruntime-cpu"
    )


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        ProviderError, match=r"CuPy cannot be imported .*work on a GPU: .*pip .*\[cuda\]"
    ):
        Device()


def test_the_real_cupy_has_what_is_called() -> None:
    real = pytest.importorskip("cupy")
    names = ("empty", "asnumpy", "ndarray", "RawModule", "__version__")
    assert all(hasattr(real, name) for name in names)
    assert all(hasattr(real.RawModule, name) for name in ("compile", "get_function"))
    names = ("alloc_pinned_memory", "get_elapsed_time", "UnownedMemory", "MemoryPointer")
    assert all(hasattr(real.cuda, name) for name in names)
    assert all(hasattr(real, name) for name in ("repeat", "stack", "pad"))
    assert "blocking=True" in real.ndarray.get.__doc__
    assert all(hasattr(real.cuda.Event, name) for name in ("record", "synchronize"))
    assert hasattr(real.cuda.Device, "attributes")
    assert all(hasattr(real.ndarray, name) for name in ("set", "data", "nbytes"))
    assert all(hasattr(real.cuda.Stream, name) for name in ("begin_capture", "end_capture"))
    assert hasattr(real.cuda.Graph, "launch")
    assert issubclass(real.cuda.memory.OutOfMemoryError, MemoryError)
