"""One GPU through CuPy: memory, a stream, CUDA graphs.

Everything of one device goes through one stream, so that graphs that follow each other (and
CUDA code that works on what they leave on the device) need no synchronisation, and one block of
scratch memory serves every engine.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from threading import RLock
from typing import Any, TypeAlias

import numpy as np

from rism.runtime.arrays import Array
from rism.runtime.distribution import install_hint
from rism.runtime.errors import ProviderError, one_line

# `cupy.ndarray`: CuPy is imported when a device is opened, and ships no types.
DeviceArray: TypeAlias = Any


class Device:
    """A GPU. All work is queued on its one stream."""

    def __init__(self, number: int = 0) -> None:
        """Import CuPy and make a stream.

        Raises:
            ProviderError: CuPy is not there, or does not work with this driver.
        """
        self._cupy = _cupy()
        self.number = number
        self.lock = RLock()
        self._scratch: DeviceArray = None
        try:
            self._device = self._cupy.cuda.Device(number)
            with self._device:
                self._stream = self._cupy.cuda.Stream(non_blocking=True)
        except Exception as error:  # CuPy's errors of the driver share no base with others
            raise ProviderError(
                f"CuPy {self._cupy.__version__} cannot use GPU {number} "
                f"({one_line(error, limit=160)}): see nvidia-smi, update the driver, or use "
                "--provider onnxruntime-cpu"
            ) from None

    @property
    def stream(self) -> int:
        """The stream, as CUDA's handle."""
        return int(self._stream.ptr)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it the current device and stream of CUDA in this thread."""
        with self._device, self._stream:
            yield

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Return an uninitialised, C-contiguous array."""
        with self.current():
            return self._cupy.empty(shape, np.dtype(dtype))

    def copy(self, source: Any, *, into: DeviceArray) -> None:
        """Copy an array of the host or the device into one of the device, casting its dtype."""
        with self.current():
            if isinstance(source, np.ndarray):
                into.set(np.ascontiguousarray(source, dtype=into.dtype), stream=self._stream)
            else:
                into[...] = source

    def pointer(self, array: DeviceArray) -> int:
        """Return the address of an array."""
        return int(array.data.ptr)

    def holds(self, array: Any) -> bool:
        """Tell whether an array is one of this device."""
        return isinstance(array, self._cupy.ndarray) and array.device.id == self.number

    def download(self, array: DeviceArray) -> Array:
        """Wait for the stream and return an array of the host."""
        with self.current():
            return np.asarray(self._cupy.asnumpy(array, stream=self._stream))

    def scratch(self, nbytes: int) -> DeviceArray:
        """Return working memory of at least this size, which all engines share."""
        if self._scratch is None or self._scratch.nbytes < nbytes:
            self._scratch = self.empty((nbytes,), "uint8")
        return self._scratch

    def trim(self) -> None:
        """Give memory that no array uses back to the driver."""
        with self.current():
            self._stream.synchronize()
            self._cupy.get_default_memory_pool().free_all_blocks()

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        """Record what a function queues as a CUDA graph; the result launches it.

        Raises:
            ProviderError: it cannot be recorded; the stream is as it was.
        """
        failure: Exception | None = None
        with self.current():
            try:
                self._stream.begin_capture()
                queue()
            except Exception as error:  # CuPy's errors of the driver share no base with others
                failure = error
            finally:
                try:
                    graph = self._stream.end_capture()
                except Exception as error:  # of a capture that failed: not the reason
                    failure = failure or error
        if failure is not None:
            raise ProviderError(
                f"GPU {self.number} records no CUDA graph ({one_line(failure, limit=400)})"
            ) from failure

        def launch() -> None:
            with self.current():
                graph.launch(stream=self._stream)

        return launch

    def used_bytes(self) -> int:
        """Return the memory of the GPU that is in use, by any process."""
        free, total = self._device.mem_info
        return int(total - free)

    @cached_property
    def multiprocessors(self) -> int:
        """How many blocks of threads run side by side, at least."""
        return int(self._device.attributes["MultiProcessorCount"])

    def kernels(self, source: str, macros: dict[str, int]) -> "Kernels":
        """Compile CUDA C++, products and sums in roundings of their own.

        CuPy compiles for this GPU with NVRTC, and keeps the result on disk.

        Raises:
            ProviderError: there is no NVRTC, or it does not compile the source.
        """
        options = ["--std=c++17", "--fmad=false"]
        options += [f"-D{name}={value}" for name, value in macros.items()]
        with self.current():
            try:
                module = self._cupy.RawModule(code=source, options=tuple(options))
                module.compile()
            except Exception as error:  # CuPy's of the compiler and of a missing one share no base
                raise ProviderError(
                    f"CuPy {self._cupy.__version__} cannot compile the kernels of "
                    f"post-processing for GPU {self.number} ({one_line(error, limit=200)}): "
                    f"{install_hint('cuda')}, which brings NVIDIA's compiler, or use "
                    "--provider onnxruntime-cpu"
                ) from None
        return Kernels(module, self)

    def fetch(self, array: DeviceArray) -> Callable[[], Array]:
        """Queue a copy of an array to the host; the result waits for it and returns it.

        It is in page-locked memory, of which a process has little: copy what is kept for long.
        """
        with self.current():
            # CuPy keeps such memory for the next one when nobody refers to it any more.
            memory = self._cupy.cuda.alloc_pinned_memory(array.nbytes)
            host = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
            self._cupy.asnumpy(array, stream=self._stream, out=host, blocking=False)
        there = self.mark()

        def wait() -> Array:
            there.synchronize()
            return host

        return wait

    def wrap(self, pointer: int, shape: tuple[int, ...], dtype: str, owner: Any) -> DeviceArray:
        """Return an array over memory of the device that `owner` keeps alive."""
        cuda, size = self._cupy.cuda, math.prod(shape) * np.dtype(dtype).itemsize
        memory = cuda.UnownedMemory(pointer, size, owner, self.number)
        return self._cupy.ndarray(shape, np.dtype(dtype), cuda.MemoryPointer(memory, 0))

    def mark(self) -> Any:
        """Queue the recording of a point in time."""
        with self.current():
            event = self._cupy.cuda.Event()
            event.record(self._stream)
        return event

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """Wait for the later of two points and return the time between them."""
        last.synchronize()
        with self.current():
            return float(self._cupy.cuda.get_elapsed_time(first, last))


class Kernels:
    """Compiled CUDA C++."""

    def __init__(self, module: Any, device: Device) -> None:
        self._module, self._device = module, device
        self._found: dict[str, Any] = {}

    def launch(
        self, name: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Any]
    ) -> None:
        """Queue an `extern "C"` kernel: a grid of blocks along x, y and z, with threads along x.

        Its arguments are arrays of the device, and NumPy scalars of exactly the declared types.
        """
        with self._device.current():
            if name not in self._found:
                self._found[name] = self._module.get_function(name)
            self._found[name](grid, (threads, 1, 1), tuple(arguments))


@cache
def open_device(number: int) -> Device:
    """Return a GPU (see `Device`); the same for everyone who asks, so that all share its stream."""
    return Device(number)


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise ProviderError(
            f"CuPy cannot be imported ({one_line(error, limit=80)}), expected it for work on a "
            f"GPU: {install_hint('cuda')}"
        ) from None
    return cupy
