"""A device's calls of CuPy, recorded; its arrays are played by a class around NumPy's."""

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

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
        self.size, self.data = values.size, SimpleNamespace(ptr=values.ctypes.data)

    def set(self, source: np.ndarray, stream: Any = None) -> None:
        assert type(source) is np.ndarray and source.flags.c_contiguous
        assert source.dtype == self.dtype and source.shape == self.shape
        self.values[...] = source
        stream.set(self)

    def __setitem__(self, where: Any, source: "GpuArray") -> None:
        self.values[where] = source.values


class Wrapped:
    """`cupy.ndarray` as it is made over memory of somebody else."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], memory: Any) -> None:
        self.shape, self.dtype, self.memory = shape, dtype, memory
        self.device = SimpleNamespace(id=memory[3])


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    def asnumpy(
        array: GpuArray, stream: MagicMock, out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        stream.get(blocking)
        if out is None:
            return array.values.copy()
        out[...] = array.values
        return out

    fake = MagicMock(
        __version__="14.2.0",
        ndarray=Wrapped,
        empty=lambda shape, dtype: GpuArray(np.empty(shape, dtype)),
        asnumpy=asnumpy,
    )
    fake.cuda.alloc_pinned_memory = lambda size: bytearray(size + 512)  # CuPy rounds up
    fake.cuda.UnownedMemory = lambda *given: given
    fake.cuda.MemoryPointer = lambda memory, offset: (*memory, offset)
    fake.cuda.Stream.return_value.ptr = 4711
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def queued(cupy: MagicMock) -> list[str]:
    """Names of what was called on the stream, but for making it the current one."""
    names = [name for name, *_ in cupy.cuda.Stream.return_value.method_calls]
    cupy.cuda.Stream.return_value.reset_mock()
    return names


def test_arrays_come_and_go_on_one_stream(cupy: MagicMock) -> None:
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
    assert queued(cupy) == ["set", "get"]
    large = device.scratch(1000)
    assert device.scratch(10) is large and large.nbytes == 1000
    assert device.scratch(1001).nbytes == 1001


def test_a_graph_is_captured_and_launched(cupy: MagicMock) -> None:
    device, stream = Device(), cupy.cuda.Stream.return_value
    launch = device.capture(lambda: stream.work())
    assert queued(cupy) == ["begin_capture", "work", "end_capture"]
    launch()
    stream.end_capture.return_value.launch.assert_called_once_with(stream=stream)


@pytest.mark.parametrize("failure", [ValueError("the engine\nfailed"), KeyboardInterrupt()])
def test_a_capture_that_fails_is_ended_and_says_why(
    cupy: MagicMock, failure: BaseException
) -> None:
    """The end of a capture that failed is an error of its own, which is not the reason."""
    device, stream = Device(), cupy.cuda.Stream.return_value
    stream.work.side_effect = failure
    stream.end_capture.side_effect = RuntimeError("cudaErrorStreamCapture:\ninvalidated")
    with pytest.raises((ProviderError, KeyboardInterrupt)) as error:
        device.capture(lambda: stream.work())
    assert str(error.value) in ("GPU 0 records no CUDA graph (the engine failed)", "")
    assert queued(cupy) == ["begin_capture", "work", "end_capture"]
    with pytest.raises(ProviderError, match=r"graph \(cudaErrorStreamCapture: invalidated\)"):
        device.capture(lambda: None)


def test_kernels_are_compiled_and_launched_on_the_stream(cupy: MagicMock) -> None:
    device = Device()
    kernels = device.kernels("void k() {}", {"HELD": 3, "THREADS": 256})
    options = ("--std=c++17", "--fmad=false", "-DHELD=3", "-DTHREADS=256")
    cupy.RawModule.assert_called_once_with(code="void k() {}", options=options)
    array = device.empty((4,), "float32")
    kernels.launch("k", (5, 2, 1), 256, [array, np.int32(7)])
    kernel = cupy.RawModule.return_value.get_function.return_value
    kernel.assert_called_once_with((5, 2, 1), (256, 1, 1), (array, np.int32(7)))
    cupy.RawModule.return_value.compile.side_effect = RuntimeError("k.cu(1): error:\na brace")
    with pytest.raises(ProviderError) as error:
        device.kernels("void k()", {})
    assert str(error.value) == (
        "CuPy 14.2.0 cannot compile the kernels of post-processing for GPU 0 (k.cu(1): error: a "
        f"brace): {install_hint('cuda')}, which brings NVIDIA's compiler, or use "
        "--provider onnxruntime-cpu"
    )


def test_an_array_is_fetched_in_page_locked_memory(cupy: MagicMock) -> None:
    """Queued at once, waited for by who wants it; each has memory of its own."""
    device = Device()
    arrays = [device.empty((3, 4), "float32"), device.empty((5,), "uint8")]
    for each in arrays:
        device.copy(np.arange(each.size).reshape(each.shape), into=each)
    queued(cupy)
    waits, event = [device.fetch(each) for each in arrays], cupy.cuda.Event.return_value
    assert queued(cupy) == ["get", "get"] and not event.synchronize.called
    for each, wait in zip(arrays, waits, strict=True):
        np.testing.assert_array_equal(wait(), each.values)
    assert event.synchronize.call_count == 2
    cupy.cuda.get_elapsed_time.return_value = 10
    assert device.elapsed_ms(device.mark(), device.mark()) == 10
    assert event.synchronize.call_count == 3


def test_memory_of_another_library_is_kept_by_its_owner(cupy: MagicMock) -> None:
    owner = np.arange(6, dtype=np.float16)
    device = Device(1)
    array = device.wrap(owner.ctypes.data, (2, 3), "float16", owner)
    assert (array.shape, array.dtype) == ((2, 3), np.float16)
    assert array.memory == (owner.ctypes.data, 12, owner, 1, 0)
    assert device.holds(array)
    assert not Device(0).holds(array) and not device.holds(owner)


def test_a_gpu_that_cupy_cannot_use(cupy: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy.cuda.Device.side_effect = RuntimeError("cudaErrorInvalidDevice:\ninvalid device ordinal")
    with pytest.raises(ProviderError) as error:
        Device(2)
    assert str(error.value) == (
        "CuPy 14.2.0 cannot use GPU 2 (cudaErrorInvalidDevice: invalid device ordinal): see "
        "nvidia-smi, update the driver, or use --provider onnxruntime-cpu"
    )
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ProviderError, match=r"CuPy cannot be imported .*: .*pip .*\[cuda\]"):
        Device()


def test_the_real_cupy_has_what_is_called() -> None:
    real = pytest.importorskip("cupy")
    for owner, names in (
        (real, "empty asnumpy ndarray RawModule __version__ repeat stack pad"),
        (real.RawModule, "compile get_function"),
        (real.cuda, "alloc_pinned_memory get_elapsed_time UnownedMemory MemoryPointer"),
        (real.cuda.Device, "attributes"),
        (real.cuda.Event, "record synchronize"),
        (real.cuda.Graph, "launch"),
        (real.cuda.Stream, "begin_capture end_capture"),
        (real.ndarray, "set data nbytes"),
    ):
        assert [name for name in names.split() if not hasattr(owner, name)] == []
    assert "blocking=True" in real.ndarray.get.__doc__
    assert issubclass(real.cuda.memory.OutOfMemoryError, MemoryError)
