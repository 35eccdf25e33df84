"""Prompt embeddings on disk, so that a text encoder of billions of parameters can stay there.

One `.npy` file per instruction, safe to share between processes. Nothing in the folder is
trusted: whatever is not exactly of the form that was to be written is a miss.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime.atomic import write_atomically
from rism.runtime.errors import BundleError, OutputError, one_line
from rism.runtime.manifest import Manifest

__all__ = ["DEFAULT_LIMIT_BYTES", "EmbeddingCache"]

Float32: TypeAlias = npt.NDArray[np.float32]

FORMAT = "rism-embeddings-1"
DEFAULT_LIMIT_BYTES = 2 * 2**30
# An entry, or what a killed process left of one. Nothing else in the folder is ever removed.
_OURS = re.compile(r"[0-9a-f]{64}\.npy|\.[0-9a-f]{40}\.tmp-[0-9a-f]{12}")
# A link is not followed, and a pipe is not waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)


class EmbeddingCache:
    """A folder of embeddings by instruction, for one bundle on one kind of provider."""

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        *,
        provider: str,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Open a folder, or make it.

        Args:
            folder: any folder; other bundles and other processes may use it, too.
            manifest: the bundle's. Its tokenizer, text encoder and weights are part of each name.
            provider: what runs the text encoder, "cpu" or "cuda"; they differ in the last bits.
            limit_bytes: of all entries together; the oldest are removed beyond it.
            warn: told in one line of an entry that was not sound or could not be written.

        Raises:
            OutputError: the folder is not there and cannot be made.
            BundleError: the bundle does not say how wide its embeddings are.
        """
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make folder {self._folder} for embeddings: {error.strerror or error}"
            ) from None
        width = manifest.graph("text_encoder").outputs["prompt_embeds"].shape[-1:]
        if not width or not isinstance(width[0], int):
            raise BundleError(
                "manifest.json: the last size of 'prompt_embeds' is a name, expected a number for "
                "keeping embeddings: export the bundle again, or run without a cache"
            )
        self._shape = (manifest.prompt.max_length, width[0])
        self._bytes = self._shape[0] * self._shape[1] * 4
        self._header = _npy_header(self._shape)
        self._context = _context(manifest, provider)
        self._limit = limit_bytes
        self._warn = warn or (lambda _: None)

    def get(self, instruction: str) -> Float32 | None:
        """Return an embedding, (N_p, E) float32 and read-only, or None where there is none."""
        path = self._path(instruction)
        if self._bytes > self._limit:
            return None
        try:
            return self._read(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            self._warn(f"cached embedding {path} is not sound ({one_line(reason)}): made again")
            return None

    def put(self, instruction: str, embeds: Float32) -> None:
        """Keep an embedding, (N_p, E) float32; where that fails, warn and go on."""
        if embeds.shape != self._shape or not np.isfinite(embeds).all():
            return
        if self._bytes > self._limit:
            return
        data = self._header + np.ascontiguousarray(embeds, "<f4").tobytes()
        try:
            write_atomically(self._path(instruction), data, follow_links=False)
            self._evict()
        except (OSError, OutputError) as error:
            self._warn(f"embedding not cached ({one_line(error)})")

    def _path(self, instruction: str) -> Path:
        digest = hashlib.sha256(self._context + b"\0" + instruction.encode())
        return self._folder / f"{digest.hexdigest()}.npy"

    def _read(self, path: Path) -> Float32:
        """Read an entry; its kind, size and header are checked before its numbers are read."""
        descriptor = os.open(path, _FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("not a plain file")
            if status.st_size != len(self._header) + self._bytes:
                raise ValueError(f"{status.st_size} bytes")
            with open(descriptor, "rb", closefd=False) as file:
                if file.read(len(self._header)) != self._header:
                    raise ValueError("another header")
                data = file.read(self._bytes)
        finally:
            os.close(descriptor)
        if len(data) != self._bytes:
            raise ValueError("cut short while it was read")
        embeds = np.frombuffer(data, "<f4").astype(np.float32, copy=False).reshape(self._shape)
        if not np.isfinite(embeds).all():
            raise ValueError("not finite")
        return embeds

    def _evict(self) -> None:
        """Remove the oldest entries beyond the limit; others may be doing the same."""
        entries: list[tuple[int, int, str]] = []
        with os.scandir(self._folder) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    if _OURS.fullmatch(entry.name):
                        status = entry.stat(follow_symlinks=False)
                        entries.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._limit:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink()
            total -= size


def _context(manifest: Manifest, provider: str) -> bytes:
    """Return all that an embedding depends on besides the instruction."""
    prompt = manifest.prompt
    # A manifest does not say whose weights a file holds, so all but graphs and noise count.
    others = {graph.file for graph in manifest.graphs.values()} | {manifest.noise.file}
    others.discard(manifest.graph("text_encoder").file)
    files = {name: info.sha256 for name, info in manifest.files.items() if name not in others}
    parts = [
        FORMAT,
        files,
        provider,
        prompt.max_length,
        prompt.pad_id,
        prompt.prefix,
        prompt.suffix,
    ]
    return json.dumps(parts, sort_keys=True).encode()


def _npy_header(shape: tuple[int, int]) -> bytes:
    """Return what `numpy.save` writes before float32 numbers of this shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return header.getvalue()
