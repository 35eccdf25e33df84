"""The version of NVIDIA's driver and its GPUs, read with a few functions of libcuda.

So `rism doctor` and the choice of an engine work where only NumPy is installed.
"""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from rism.runtime.errors import ProviderError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True)
class Gpu:
    """One GPU: its number, name, compute capability such as "8.9", and memory in bytes."""

    number: int
    name: str
    compute_capability: str
    memory: int

    def __str__(self) -> str:
        """Name it as messages do: "GPU 0 (RTX 4090, 8.9)"."""
        return f"GPU {self.number} ({self.name}, {self.compute_capability})"


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: the newest CUDA that it supports, (major, minor), and its GPUs."""

    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]

    def gpu(self, number: int) -> Gpu:
        """Return a GPU by its number.

        Raises:
            ProviderError: there is none of that number.
        """
        for gpu in self.gpus:
            if gpu.number == number:
                return gpu
        there = ", ".join(f"{gpu.number} ({gpu.name})" for gpu in self.gpus) or "none"
        raise ProviderError(
            f"there is no GPU {number}, this machine has {there}: pass --device with one of them, "
            "or see CUDA_VISIBLE_DEVICES and nvidia-smi"
        )


def sm(compute_capability: str) -> str:
    """Write a compute capability as `rism build --gpu` takes it: "8.9" as "sm89"."""
    return "sm" + compute_capability.replace(".", "")


@cache
def find_driver() -> Driver:
    """Return the driver and its GPUs.

    Raises:
        ProviderError: there is none, or it does not start.
    """
    library = _load()
    version = ctypes.c_int(0)
    _call(library.cuDriverGetVersion, ctypes.byref(version))
    cuda = (version.value // 1000, version.value % 1000 // 10)
    status = int(library.cuInit(0))
    if status == _NO_DEVICE:
        return Driver(cuda, ())
    if status:
        raise ProviderError(
            f"NVIDIA's driver (CUDA {cuda[0]}.{cuda[1]}) does not start (cuInit says {status}): "
            "see nvidia-smi, reboot after an update of the driver"
        )
    count = ctypes.c_int(0)
    _call(library.cuDeviceGetCount, ctypes.byref(count))
    return Driver(cuda, tuple(_gpu(library, number) for number in range(count.value)))


def free_memory(number: int) -> int:
    """Return the bytes that are free on a GPU.

    Raises:
        ProviderError: there is no such GPU, or it does not say.
    """
    find_driver().gpu(number)
    library, device, context = _load(), ctypes.c_int(0), ctypes.c_void_p()
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    _call(library.cuDeviceGet, ctypes.byref(device), number)
    # The context that CUDA's own libraries share: it is made now, or was there.
    _call(library.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)
    _call(library.cuCtxPushCurrent_v2, context)
    try:
        _call(library.cuMemGetInfo_v2, ctypes.byref(free), ctypes.byref(total))
    finally:
        _call(library.cuCtxPopCurrent_v2, ctypes.byref(context))
        _call(library.cuDevicePrimaryCtxRelease_v2, device)
    return free.value


def _gpu(library: ctypes.CDLL, number: int) -> Gpu:
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    major, minor, memory = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    _call(library.cuDeviceGet, ctypes.byref(device), number)
    _call(library.cuDeviceGetName, name, len(name), device)
    _call(library.cuDeviceGetAttribute, ctypes.byref(major), _MAJOR, device)
    _call(library.cuDeviceGetAttribute, ctypes.byref(minor), _MINOR, device)
    _call(library.cuDeviceTotalMem_v2, ctypes.byref(memory), device)
    shown = name.value.decode("utf-8", "replace")
    return Gpu(number, shown, f"{major.value}.{minor.value}", memory.value)


def _call(function: Callable[..., object], *arguments: object) -> None:
    status = function(*arguments)
    if status:
        name = getattr(function, "__name__", "the driver")
        raise ProviderError(f"NVIDIA's driver failed ({name} says {status}): see nvidia-smi")


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise ProviderError(
            "there is no NVIDIA driver here (no libcuda), expected one for GPU providers: install "
            "it and see nvidia-smi (in a container: --gpus all), or use --provider onnxruntime-cpu"
        ) from None
