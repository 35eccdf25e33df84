"""CuPy's edge: what a device does with it, on arrays that stand for a GPU's."""

import sys
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pytest

from rism.runtime import ProviderError
from rism.runtime.device import CudaDevice


class GpuArray:
    """`cupy.ndarray`: no NumPy array, and fed from the host by `set` alone."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape, self.dtype, self.nbytes = values.shape, values.dtype, values.nbytes
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
        return SimpleNamespace(launch=lambda stream: stream.done.append("launch"))


class Gpu:
    def __init__(self, number: int) -> None:
        if number > 1:
            raise RuntimeError("cudaErrorInvalidDevice:\ninvalid device ordinal")

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    def asnumpy(array: GpuArray, stream: Stream) -> np.ndarray:
        stream.done.append("get")
        return array.values.copy()

    fake = SimpleNamespace(
        __version__="14.2.0",
        cuda=SimpleNamespace(Device=Gpu, Stream=Stream),
        empty=lambda shape, dtype: GpuArray(np.empty(shape, dtype)),
        asnumpy=asnumpy,
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_arrays_come_and_go_on_one_stream(cupy: Any) -> None:
    device = CudaDevice(1)
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
    device = CudaDevice()
    large = device.scratch(1000)
    assert large.nbytes == 1000
    assert device.scratch(10) is large
    assert device.scratch(1001).nbytes == 1001


def test_a_graph_is_captured_and_launched(cupy: Any) -> None:
    device = CudaDevice()
    launch = device.capture(lambda: device._stream.done.append("work"))
    launch()
    launch()
    assert device._stream.done == ["begin", "work", "end", "launch", "launch"]


def test_a_capture_that_fails_is_ended(cupy: Any) -> None:
    device = CudaDevice()

    def fail() -> None:
        raise ProviderError("the engine failed")

    with pytest.raises(ProviderError, match="the engine failed"):
        device.capture(fail)
    assert device._stream.done == ["begin", "end"]


def test_a_gpu_that_cupy_cannot_use(cupy: Any) -> None:
    with pytest.raises(ProviderError) as error:
        CudaDevice(2)
    assert str(error.value) == (
        "CuPy 14.2.0 cannot use GPU 2 (cudaErrorInvalidDevice: invalid device ordinal): see "
        "nvidia-smi, update the driver, or use --provider onnxruntime-cpu"
    )


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ProviderError, match=r"need CuPy, which cannot be imported .*rism\[cuda\]"):
        CudaDevice()


def test_the_real_cupy_has_what_is_called() -> None:
    real = pytest.importorskip("cupy")
    assert all(hasattr(real, name) for name in ("empty", "asnumpy", "ndarray", "__version__"))
    assert all(hasattr(real.ndarray, name) for name in ("set", "data", "nbytes"))
    assert all(hasattr(real.cuda.Stream, name) for name in ("begin_capture", "end_capture"))
    assert hasattr(real.cuda.Graph, "launch")
    assert issubclass(real.cuda.memory.OutOfMemoryError, MemoryError)
