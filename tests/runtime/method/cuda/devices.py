"""Devices of the CPU that notice when a kernel leaves its arrays."""

import ctypes
import mmap

import numpy as np

from tests.runtime.engines.fake_tensorrt import HostDevice


class GuardedDevice(HostDevice):
    """Surrounds its arrays with bytes of NaN, which no kernel may change or use."""

    guard = 256

    def __init__(self) -> None:
        super().__init__()
        self._guarded: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * self.guard, 0xFF, np.uint8)
        self._guarded.append(memory)
        return memory[self.guard : self.guard + size].view(dtype).reshape(shape)

    def scratch(self, nbytes: int) -> np.ndarray:
        return self.empty((nbytes,), "uint8")

    def intact(self) -> bool:
        return all(
            (each[: self.guard] == 0xFF).all() and (each[-self.guard :] == 0xFF).all()
            for each in self._guarded
        )


class FencedDevice(HostDevice):
    """Has an unreadable page after each of its arrays: reading it kills the process."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        page, size = mmap.PAGESIZE, int(np.prod(shape)) * np.dtype(dtype).itemsize
        end = -(-size // page) * page
        memory = mmap.mmap(-1, end + page)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(begin + end), ctypes.c_size_t(page), 0) == 0
        start = (end - size) // 4 * 4  # floats lie on words
        return np.frombuffer(memory, np.uint8, size, start).view(dtype).reshape(shape)

    def scratch(self, nbytes: int) -> np.ndarray:
        return self.empty((nbytes,), "uint8")
