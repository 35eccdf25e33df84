"""Engines that leave their outputs on a GPU, and arrays that are copied to the host when needed.

Between two engines on one GPU, what the first returns is not copied to the host.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from rism.runtime.arrays import Array, Float32
from rism.runtime.engines.base import Arrays, Engine, LazyEngine
from rism.runtime.engines.cuda_device import Device, DeviceArray
from rism.runtime.errors import ProviderError, one_line


def array_namespace(array: Any) -> ModuleType:
    """Return the module (numpy or cupy) that an array belongs to."""
    if type(array).__module__.partition(".")[0] == "cupy":
        import cupy

        module: ModuleType = cupy
        return module
    return np


class DeviceEngine(ABC):
    """An engine that leaves its outputs on a GPU; derive from it beside what runs the graph."""

    device: Device

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run the graph and bring its outputs to the host, see `Engine.run`.

        Raises:
            ProviderError: the run failed, for lack of memory for example.
        """
        with self.device.lock:
            outputs = self.run_on_device(feeds)
            return {logical: self.device.download(array) for logical, array in outputs.items()}

    @abstractmethod
    def run_on_device(
        self, feeds: Mapping[str, Any], *, borrow: bool = False
    ) -> dict[str, DeviceArray]:
        """Queue a run and return its outputs without waiting for them.

        Args:
            feeds: arrays by logical name, of NumPy or of the device; those of the device have
                to be ready in the order of the device's stream.
            borrow: the outputs may be the engine's own memory, which its next run overwrites, so
                nothing is copied. Hold `device.lock` until all that reads them is queued.

        Returns:
            The declared outputs by logical name, ready in the order of the device's stream.
        """


class Mirrored:
    """A float32 array on the host, on a GPU or on both: copied when it is first needed there."""

    def __init__(self, array: Any, device: Device | None = None) -> None:
        """Take an array of a device, ready in the order of its stream, or one of the host."""
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.nbytes = int(array.nbytes)
        self._host: Float32 | None = array if device is None else None
        self._there: dict[Device, DeviceArray] = {} if device is None else {device: array}

    def __len__(self) -> int:
        """Rows."""
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return the host's copy, for `numpy.asarray`; read-only."""
        if self._host is None:
            ((device, array),) = self._there.items()
            with device.lock:
                wait = device.fetch(array)
            host = wait().copy()
            host.flags.writeable = False
            self._host = host
        return np.array(self._host, dtype, copy=copy)

    def __reduce__(self) -> tuple[type, tuple[Any]]:
        """Pickles hold the host's copy."""
        return Mirrored, (np.asarray(self),)

    def on(self, device: Device) -> DeviceArray:
        """Return a device's copy, ready in the order of its stream."""
        with held(device):
            if device not in self._there:
                host = np.asarray(self)
                there = device.empty(self.shape, "float32")
                device.copy(host, into=there)
                self._there[device] = there
            return self._there[device]

    def changed(self, change: Callable[[DeviceArray], DeviceArray]) -> "Mirrored":
        """Apply a function to the array, on the device where it is."""
        if not self._there:
            return Mirrored(change(self._host))
        device, array = next(iter(self._there.items()))
        with held(device):
            return Mirrored(change(array), device)


@contextmanager
def held(device: Device | None) -> Iterator[None]:
    """Lock a device, if any, and make it the current one.

    Raises:
        ProviderError: in place of a `MemoryError`, of which CuPy's OutOfMemoryError is one.
    """
    if device is None:
        yield
        return
    with device.lock, device.current():
        try:
            yield
        except MemoryError as error:
            raise ProviderError(
                f"GPU {device.number} has too little memory ({one_line(error, limit=160)}): "
                "use fewer expressions at a time or a smaller image"
            ) from None


def at(array: Float32 | Mirrored, device: Device | None) -> Any:
    """Return an array on a device, or on the host with None."""
    if not isinstance(array, Mirrored):
        return array
    return np.asarray(array) if device is None else array.on(device)


def changed(array: Float32 | Mirrored, change: Callable[[Any], Any]) -> Float32 | Mirrored:
    """Apply a function of NumPy or CuPy arrays to an array, on the device where it is."""
    found: Float32 | Mirrored
    found = array.changed(change) if isinstance(array, Mirrored) else change(array)
    return found


def device_engine(engine: Engine) -> DeviceEngine | None:
    """Return an engine as one that leaves its outputs on a GPU, or None; loads a lazy one."""
    found = engine
    while isinstance(found, LazyEngine):
        found = found.loaded()
    return found if isinstance(found, DeviceEngine) else None


def run_in_place(
    engine: Engine, feeds: Mapping[str, Array | Mirrored], output: str
) -> Float32 | Mirrored:
    """Run a graph and return one output as float32, on the GPU where it was made on one.

    Waits for it, so that its time and its errors are its own.
    """
    there = device_engine(engine)
    if there is None:
        given = {name: np.asarray(each) for name, each in feeds.items()}
        return engine.run(given)[output].astype(np.float32, copy=False)
    device = there.device
    with held(device):
        found = there.run_on_device({name: at(each, device) for name, each in feeds.items()})
        array = found[output].astype(np.float32, copy=False)
        done = device.mark()
    device.elapsed_ms(done, done)
    return Mirrored(array, device)
