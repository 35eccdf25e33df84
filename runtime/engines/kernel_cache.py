"""Kernels that TensorRT for RTX compiled for a GPU, kept on disk: its runtime cache.

The library compiles a plan's kernels on the machine that runs it, which takes seconds for each
new shape. One file for each plan and kind of machine keeps them for later processes.

The kernels run on the GPU and no manifest lists them, so they are kept in a folder that only this
user can write to, never in a bundle, and are used only if their hash is right. The library itself
refuses kernels of another version, driver or card. Refused kernels are compiled again, with a
warning.
"""

import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from rism.runtime.atomic_write import write_atomically
from rism.runtime.engines.tensorrt_api import RuntimeCacheObject, RuntimeConfig
from rism.runtime.errors import OutputError, RismWarning, one_line
from rism.runtime.user_cache import evict, read_plain_file, user_cache

FORMAT = "rism-runtime-cache-1"
LARGEST_BYTES = 2**30
LIMIT_BYTES = 4 * 2**30
# An entry, or a temporary file of a killed process. Nothing else in the folder is removed.
_OURS = re.compile(r"[0-9a-f]{64}\.rtcache|\.[0-9a-f]{40}\.tmp-[0-9a-f]{12}")
Shapes: TypeAlias = tuple[tuple[int, ...], ...]
_DIGEST_BYTES = hashlib.sha256().digest_size


class RuntimeCache:
    """The compiled kernels of one plan on one kind of machine.

    Its key is what kernels depend on: the plan's hash, the library's version, driver, card.
    """

    def __init__(self, key: Sequence[str]) -> None:
        self._key = json.dumps([FORMAT, *key]).encode()
        self._label = ""
        self._file = Path()
        self._library: RuntimeCacheObject | None = None
        self._kept = b""  # digest of what is on disk
        self._shapes: set[Shapes] = set()

    def attach(self, config: RuntimeConfig, *, label: str) -> None:
        """Let a context of this config use the stored kernels, and collect new ones.

        Gives a `RismWarning` where that cannot be done; it calls the plan `label`. The context
        must not outlive this object.
        """
        self._label = label
        try:
            self._file = cache_folder() / f"{hashlib.sha256(self._key).hexdigest()}.rtcache"
        except (OSError, ValueError) as error:
            self._cannot_keep(error)
            return
        cache = config.create_runtime_cache()
        try:
            self._load(cache)
        except FileNotFoundError:
            pass  # nothing was compiled yet
        except (OSError, ValueError) as error:
            _say(
                f"compiled kernels of {label} in {self._file} are not used ({_reason(error)}): "
                "they are compiled anew, which takes seconds"
            )
        if config.set_runtime_cache(cache):
            self._library = cache
        else:
            self._cannot_keep(ValueError("the library refuses"))

    def ran(self, shapes: Shapes) -> None:
        """Store what was compiled for a run, if it is the first with these shapes of its inputs.

        Gives one `RismWarning` where that fails.
        """
        if self._library is None or shapes in self._shapes:
            return
        self._shapes.add(shapes)
        data = _serialized(self._library)
        digest = self._digest(data)
        if digest == self._kept:
            return
        try:
            if not 0 < len(data) <= LARGEST_BYTES:
                raise ValueError(f"{len(data)} bytes, expected up to {LARGEST_BYTES}")
            write_atomically(self._file, digest + data, follow_links=False)
            self._kept = digest
            evict(self._file.parent, _OURS, LIMIT_BYTES)
        except (OSError, OutputError, ValueError) as error:
            self._library = None
            self._cannot_keep(error)

    def _load(self, cache: RuntimeCacheObject) -> None:
        data = read_plain_file(self._file, most=_DIGEST_BYTES + LARGEST_BYTES)
        blob = data[_DIGEST_BYTES:]
        if self._digest(blob) != data[:_DIGEST_BYTES]:
            raise ValueError("damaged")
        if not cache.deserialize(blob):
            raise ValueError("the library refuses them, as after an update of the driver")
        # Not the file's: the order of kernels may differ.
        self._kept = self._digest(_serialized(cache))

    def _digest(self, blob: bytes) -> bytes:
        # With the key, so that a file under another name is refused, too.
        return hashlib.sha256(self._key + blob).digest()

    def _cannot_keep(self, error: Exception) -> None:
        _say(
            f"compiled kernels of {self._label} cannot be kept ({_reason(error)}): each process "
            "compiles them anew, which takes seconds; XDG_CACHE_HOME may name another place"
        )


def _serialized(cache: RuntimeCacheObject) -> bytes:
    blob = cache.serialize()
    return b"" if blob is None else bytes(memoryview(blob))


def _say(text: str) -> None:
    warnings.warn(text, RismWarning, stacklevel=4)


def cache_folder() -> Path:
    """Return the folder, made if need be; OSError or ValueError where there can be none."""
    folder = user_cache() / "rism" / "tensorrt-rtx"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "geteuid"):
        status = folder.stat()
        if status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & 0o022:
            raise ValueError(f"others can write to {folder}, expected mode 700")
    return folder


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.strerror}: {error.filename}", limit=200)
    return one_line(error, limit=200)
