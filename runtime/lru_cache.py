"""A cache of arrays that drops the least recently used ones."""

from collections import OrderedDict
from threading import Lock
from typing import Generic, Protocol, TypeVar

_MOST_BYTES = 512 * 2**20


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


V = TypeVar("V", bound=_Sized)


class LruCache(Generic[V]):
    """Maps strings to arrays; safe to share between threads.

    Args:
        size: at most this many of them.
        nbytes: of at most this many bytes together; the newest is kept whatever its size.
    """

    def __init__(self, size: int, nbytes: int = _MOST_BYTES) -> None:
        self._size, self._limit, self._held = size, nbytes, 0
        self._values: OrderedDict[str, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> V | None:
        """Return the value, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: V) -> None:
        """Keep a value, dropping the least recently used ones when full."""
        with self._lock:
            old = self._values.pop(key, None)
            self._held += value.nbytes - (0 if old is None else old.nbytes)
            self._values[key] = value
            while len(self._values) > 1 and (
                len(self._values) > self._size or self._held > self._limit
            ):
                _, dropped = self._values.popitem(last=False)
                self._held -= dropped.nbytes
