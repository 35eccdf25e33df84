"""Prompt embeddings on disk, so that a text encoder of billions of parameters need not be loaded.

One `.npy` file per instruction, or per instruction and image for text encoders with vision; a
second one with the modulation, where the bundle makes it by a graph of its own. The folder can be
shared between processes and is not trusted: a file that is not exactly of the expected form is a
miss.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from rism.runtime.arrays import Float32
from rism.runtime.atomic_write import write_atomically
from rism.runtime.bundle.graph_spec import SIZELESS
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.errors import BundleError, OutputError, one_line
from rism.runtime.user_cache import evict, read_plain_file

FORMAT = "rism-embeddings-2"
DEFAULT_LIMIT_BYTES = 2 * 2**30
# An entry, or the rest of one that a killed process was writing. Nothing else is ever removed.
_OURS = re.compile(r"[0-9a-f]{64}\.npy|\.[0-9a-f]{40}\.tmp-[0-9a-f]{12}")


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
            folder: other bundles and other processes may use it, too.
            manifest: the bundle's. Its tokenizer, text encoder and weights are part of each name.
            provider: of the text encoder: "cpu", "cuda", or the hash of a plan; their results
                differ in the last bits, or in more.
            limit_bytes: of all entries; beyond it the oldest are removed.
            warn: called with a line for each entry that is damaged or cannot be written.

        Raises:
            OutputError: the folder cannot be made.
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
        self._rows, self._width = manifest.prompt.max_length, width[0]
        self._context = _context(manifest, provider)
        self._limit = limit_bytes
        self._warn = warn or (lambda _: None)

    def get(
        self,
        instruction: str,
        *,
        image: str = "",
        rows: int | None = None,
        width: int | None = None,
    ) -> Float32 | None:
        """Return an embedding, (rows, E) float32 and read-only, or None where there is none.

        `image` is the digest of the text encoder's view, empty without vision. It has `rows`
        tokens; None for `max_length`. With `width` it is the modulation instead, (1, width).
        """
        path = self._path(instruction, image, modulation=width is not None)
        shape = (self._rows if rows is None else rows, self._width)
        if width is not None:
            shape = (1, width)
        if _nbytes(shape) > self._limit:
            return None
        try:
            return _read(path, shape)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            self._warn(f"cached embedding {path} is not sound ({one_line(reason)}): made again")
            return None

    def put(
        self, instruction: str, embeds: Float32, *, image: str = "", modulation: bool = False
    ) -> None:
        """Write an embedding, (rows, E) float32; where that fails, warn and go on.

        One of more than `max_length` tokens, or that is not finite, is not written. With
        `modulation` it is that, (1, R).
        """
        if not modulation and (
            embeds.ndim != 2 or embeds.shape[1] != self._width or len(embeds) > self._rows
        ):
            return
        if embeds.nbytes > self._limit or not np.isfinite(embeds).all():
            return
        data = _npy_header(embeds.shape) + np.ascontiguousarray(embeds, "<f4").tobytes()
        try:
            path = self._path(instruction, image, modulation=modulation)
            write_atomically(path, data, follow_links=False)
            evict(self._folder, _OURS, self._limit)
        except (OSError, OutputError) as error:
            self._warn(f"embedding not cached ({one_line(error)})")

    def _path(self, instruction: str, image: str, *, modulation: bool) -> Path:
        # Neither contains a zero byte, and an instruction is never empty.
        parts = [instruction, image] if image else [instruction]
        parts += ["", "modulation"] if modulation else []
        name = b"\0".join([self._context, *(part.encode() for part in parts)])
        return self._folder / f"{hashlib.sha256(name).hexdigest()}.npy"


def _context(manifest: Manifest, provider: str) -> bytes:
    """Return everything that an embedding depends on besides the instruction and the image."""
    prompt = asdict(manifest.prompt)
    del prompt["template"]  # a part of the instruction
    # A manifest does not say which graph's weights a file holds: all but graphs and noise count.
    others = {graph.file for graph in manifest.graphs.values()} | {manifest.noise.file}
    for name in SIZELESS:
        if name in manifest.graphs:
            others.discard(manifest.graph(name).file)
    files = {name: info.sha256 for name, info in manifest.files.items() if name not in others}
    return json.dumps([FORMAT, files, provider, prompt], sort_keys=True).encode()


def _read(path: Path, shape: tuple[int, int]) -> Float32:
    """Read an entry; its kind, size and header are checked first."""
    header, count = _npy_header(shape), _nbytes(shape)
    data = read_plain_file(path, most=len(header) + count)
    if len(data) != len(header) + count:
        raise ValueError(f"{len(data)} bytes")
    if data[: len(header)] != header:
        raise ValueError("another header")
    embeds = (
        np.frombuffer(data, "<f4", offset=len(header)).astype(np.float32, copy=False).reshape(shape)
    )
    if not np.isfinite(embeds).all():
        raise ValueError("not finite")
    return embeds


def _nbytes(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1] * 4


@lru_cache(maxsize=64)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header that `numpy.save` writes before float32 numbers of this shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return header.getvalue()
